"""Branches of guidance that come late or for a while, against hooks in the eager model, each branch by itself."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from pipelines import PIPELINES
from torch import Tensor
from tracing import graphs_as_they_are

import soda_compile

FAMILY, STEPS, INTERVAL = FAMILIES["flux"], 6, 2
INPUTS = FAMILY.trajectory(STEPS, batch=1)
Cuts = dict[str, Tensor]  # by path of the module


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs observed blocks node by node: what is measured does not depend on how they are compiled."""
    graphs_as_they_are(monkeypatch)
    yield
    torch.compiler.reset()


def inputs_of(branch: str, step: int) -> dict[str, Any]:
    sign = {"cond": 1.0, "uncond": -1.7, "image": 0.4}[branch]
    return {**INPUTS[step], "hidden_states": sign * INPUTS[step]["hidden_states"]}


def run(pipe: Any, branches_by_step: Sequence[Sequence[str]], *, named: bool = True) -> None:
    """One generation, in which each step calls these branches in this order."""
    pipe.scheduler.set_timesteps(STEPS)
    latents = torch.zeros(1, 16, 8)
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        for branch in branches_by_step[step]:
            with ExitStack() as stack:
                if named:
                    stack.enter_context(pipe.transformer.cache_context(branch))
                pipe.transformer(**inputs_of(branch, step))
        pipe.scheduler.step(latents, timestep, latents)


def cuts_of(model: torch.nn.Module, branch: str, step: int) -> Cuts:
    """What the cut modules of all regions give in one call of the eager model."""
    seen: Cuts = {}
    with ExitStack() as stack, torch.no_grad():
        for path in (path for region in FAMILY.regions.values() for path in region.cuts):

            def keep(module: Any, args: Any, output: Tensor, path: str = path) -> None:
                seen[path] = output.double().flatten()

            stack.callback(model.get_submodule(path).register_forward_hook(keep).remove)
        model(**inputs_of(branch, step))
    return seen


def error(cuts: Sequence[str], now: Cuts, before: Cuts) -> tuple[float, float]:
    """Cosine and relative error of a region of one sample."""
    present, past = (torch.cat([value[path] for path in cuts]) for value in (now, before))
    cosine = 1 - float(present @ past / present.norm() / past.norm())
    return cosine, float((past - present).norm() / present.norm())


LATE = [["cond"], ["cond"], *[["uncond", "cond"]] * 4]
TURNS = [["cond", "uncond"], ["uncond", "cond"]] * 3
AWAY = [*[["cond", "uncond"]] * 2, ["cond"], *[["cond", "uncond"]] * 3]
REPLACED = [*[["cond", "uncond"]] * 3, *[["image", "cond"]] * 3]


@pytest.mark.parametrize("branches_by_step", [LATE, TURNS, AWAY, REPLACED], ids=["late", "turns", "away", "replaced"])
def test_errors_are_those_of_each_branch_by_itself(branches_by_step: list[list[str]]):
    pipe = PIPELINES["flux"].build()
    cuts = {
        (branch, step): cuts_of(pipe.transformer, branch, step)
        for step in range(STEPS)
        for branch in branches_by_step[step]
    }
    found = soda_compile.calibrate(pipe, lambda seed: run(pipe, branches_by_step), generations=1, max_interval=INTERVAL)
    assert (found.info.steps, found.info.calls_per_step) == (STEPS, 2)
    regions = enumerate(FAMILY.regions.values())
    for (number, region), step, age in product(regions, range(STEPS), range(1, INTERVAL + 1)):
        # A branch that comes late or back has no value to reuse before it has come.
        samples = [
            error(region.cuts, cuts[branch, step], cuts[branch, step - age])
            for branch in branches_by_step[step]
            if all((branch, step - back) in cuts for back in range(age + 1))
        ]
        tables = [found.table(metric, "reuse")[step, number, age - 1] for metric in ("cosine", "relative")]
        wanted = np.mean(samples, axis=0) if samples else [np.nan, np.nan]
        np.testing.assert_allclose(tables, wanted, rtol=2e-3, atol=1e-6, err_msg=f"step {step}, {region}, age {age}")
    assert "cache_context" not in vars(pipe.transformer), "a hook was left behind"


@pytest.mark.thorough
def test_names_do_not_change_what_is_measured_where_every_branch_is_called_at_every_step():
    pipe = PIPELINES["flux"].build()

    def measure(named: bool) -> dict[str, np.ndarray]:
        def generate(seed: int) -> None:
            run(pipe, [["cond", "uncond"]] * STEPS, named=named)

        return soda_compile.calibrate(pipe, generate, generations=1, max_interval=INTERVAL).arrays()

    tables = measure(named=True), measure(named=False)
    for name, table in tables[0].items():
        np.testing.assert_array_equal(table, tables[1][name], err_msg=name)
