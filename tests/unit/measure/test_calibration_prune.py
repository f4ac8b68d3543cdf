"""Pruning measured on a whole model, against hooks in the eager model and outputs put together token by token."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from numpy.typing import NDArray
from torch import Tensor, nn
from tracing import eager_graphs

import soda_compile
from soda_compile.plans.actions import PRUNE_RATES
from soda_compile.plans.pruning import SCORES
from soda_compile.plans.sensitivity import METRICS, Sensitivity

FAMILY, STEPS, INTERVAL = FAMILIES["dit"], 4, 2
Array = NDArray[np.float64]


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    """Runs observed blocks node by node: what is measured does not depend on how they are compiled."""
    with eager_graphs():
        yield


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return FAMILY.build()


def generate(model: nn.Module, seed: int) -> None:
    with torch.no_grad():
        for inputs in FAMILY.trajectory(STEPS):
            model(**{**inputs, "hidden_states": inputs["hidden_states"] * (1 + 0.2 * seed)})


def measure(model: nn.Module, generations: int, **options: Any) -> Sensitivity:
    options = {"max_interval": INTERVAL, "prune_scores": SCORES, **options}
    return soda_compile.calibrate(model, lambda seed: generate(model, seed), generations=generations, **options)


@pytest.fixture(scope="module")
def sensitivity(model: nn.Module) -> Sensitivity:
    return measure(model, 2)


def record(model: nn.Module, seed: int) -> dict[str, list[dict[str, Array]]]:
    """Output, gate [rows, features] and input of every residual module at every step, by region name."""
    seen: dict[str, list[dict[str, Array]]] = {}

    def note(name: str, key: str, value: Tensor) -> None:
        steps = seen.setdefault(name, [])
        if not steps or key in steps[-1]:
            steps.append({})
        steps[-1][key] = value.double().numpy()

    def gates(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
            note(f"{name}.attn1", "gate", output[1])
            note(f"{name}.ff", "gate", output[4])

        return hook

    def keep_input(name: str) -> Any:
        return lambda module, args: note(name, "carry", args[0])

    def keep_output(name: str) -> Any:
        return lambda module, args, output: note(name, "cut", output)

    with ExitStack() as stack:
        for number, block in enumerate(model.transformer_blocks):
            name = f"transformer_blocks.{number}"
            for handle in (
                block.norm1.register_forward_hook(gates(name)),
                block.norm1.register_forward_pre_hook(keep_input(f"{name}.attn1")),
                block.norm3.register_forward_pre_hook(keep_input(f"{name}.ff")),
                block.attn1.register_forward_hook(keep_output(f"{name}.attn1")),
                block.ff.register_forward_hook(keep_output(f"{name}.ff")),
            ):
                stack.callback(handle.remove)
        generate(model, seed)
    return seen


def expected(steps: Sequence[dict[str, Array]], score: str, step: int, age: int, rate: float) -> list[list[float]]:
    """Errors by row and metric."""
    now, before = steps[step], steps[step - age]
    rows = []
    for row in range(len(now["cut"])):
        fresh, old, x, x_old = now["cut"][row], before["cut"][row], now["carry"][row], before["carry"][row]
        rank = x.mean(1) if score == "feature_mean" else np.sqrt(((x - x_old) ** 2).sum(1))
        mixed = fresh.copy()
        for token in np.argsort(rank)[: math.floor(rate * len(fresh))]:
            mixed[token] = old[token]
        cosine = 1 - (mixed * fresh).sum() / np.linalg.norm(mixed) / np.linalg.norm(fresh)
        relative = np.linalg.norm(mixed - fresh) / np.linalg.norm(fresh)
        residual = np.linalg.norm(now["gate"][row] * (mixed - fresh)) / np.linalg.norm(x)
        rows.append([cosine, relative, residual])
    return rows


@pytest.mark.parametrize("score", ["drift", "feature_mean"])
def test_every_entry_is_that_of_the_eager_model(model: nn.Module, sensitivity: Sensitivity, score: str):
    generations = [record(model, seed) for seed in sensitivity.info.seeds]
    assert tuple(generations[0]) == sensitivity.info.regions
    for (number, name), step, age in product(enumerate(sensitivity.info.regions), range(STEPS), range(1, INTERVAL + 1)):
        for place, rate in enumerate(PRUNE_RATES):
            entry = (step, number, age - 1, place)
            tables = [
                (group[f"{metric}.prune.{score}"][entry])
                for group in (sensitivity.mean, sensitivity.variance)
                for metric in METRICS
            ]
            if age > step:
                assert np.isnan(tables).all()
                continue
            samples = np.array([row for seen in generations for row in expected(seen[name], score, step, age, rate)])
            wanted = [*samples.mean(0), *samples.var(0)]
            np.testing.assert_allclose(tables, wanted, rtol=2e-3, atol=1e-7, err_msg=f"{name} {entry}")


def test_less_is_lost_at_lower_rates_and_never_more_than_by_reuse(sensitivity: Sensitivity):
    for score in SCORES:
        table = sensitivity.table("relative", f"prune.{score}")
        assert (np.diff(table, axis=-1)[~np.isnan(table[..., 1:])] >= 0).all()
        reuse = sensitivity.table("relative", "reuse")[..., None]
        known = ~np.isnan(table)
        np.testing.assert_array_equal(known, np.broadcast_to(~np.isnan(reuse), table.shape))
        assert (table <= reuse * (1 + 1e-5))[known].all()


def test_the_other_tables_are_those_of_a_measurement_without_pruning(model: nn.Module, sensitivity: Sensitivity):
    plain = measure(model, 2, prune_scores=())
    assert (plain.prune_scores, plain.region_prune_flops) == ((), None)
    for key, table in plain.arrays().items():
        np.testing.assert_allclose(sensitivity.arrays()[key], table, rtol=1e-6, err_msg=key)


def test_resuming_is_measuring_in_one_go(model: nn.Module, sensitivity: Sensitivity, tmp_path: Path):
    measure(model, 1).save(tmp_path / "first.safetensors")
    resumed = measure(model, 1, resume=Sensitivity.load(tmp_path / "first.safetensors"))
    assert (resumed.prune_scores, resumed.info.seeds) == (sensitivity.prune_scores, (0, 1))
    np.testing.assert_array_equal(resumed.region_prune_flops, sensitivity.region_prune_flops)
    for name, table in sensitivity.arrays().items():
        np.testing.assert_allclose(resumed.arrays()[name], table, rtol=1e-4, atol=1e-7, err_msg=name)


def test_scores_are_checked_before_anything_runs(model: nn.Module, sensitivity: Sensitivity):
    def calibrate(**options: Any) -> None:
        soda_compile.calibrate(model, lambda seed: pytest.fail("the model was run"), generations=1, **options)

    for scores in ("drift", ("drift", "entropy"), (["drift"],)):
        with pytest.raises(soda_compile.OptionError, match="it must be a sequence of feature_mean, drift, random"):
            calibrate(prune_scores=scores)
    with pytest.raises(
        soda_compile.OptionError, match=r"prune_scores is \('drift',\), but what is resumed was measured"
    ):
        calibrate(prune_scores=["drift"], resume=sensitivity)
