"""Sensitivities of models that keep tokens first, or fold samples into other axes."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from layout_models import WIDTH, Denoiser, Mixed, encoder_layers_unfused
from torch import nn
from tracing import eager_graphs

import soda_compile
from soda_compile.compiler.bind import require_token_axes
from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.sensitivity import Sensitivity

SAMPLES, TOKENS, STEPS = 3, 10, 4


def build(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval().requires_grad_(False)


def measure(net: nn.Module, rows: slice = slice(None), **options: object) -> Sensitivity:
    @torch.no_grad()
    def generate(seed: int) -> None:
        x = torch.randn(SAMPLES, TOKENS, 4, generator=torch.Generator().manual_seed(seed))[rows]
        for step in range(STEPS):
            x = x - 0.3 * net(x, torch.full((len(x),), 1 - step / STEPS))

    return soda_compile.calibrate(net, generate, generations=2, max_interval=2, **options)


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """Graphs run node by node, and encoder layers as the operators they are made of."""
    with encoder_layers_unfused(), eager_graphs():
        yield


def same(one: Sensitivity, other: Sensitivity, tolerance: float = 2e-4) -> None:
    assert one.mean.keys() == other.mean.keys()
    for name, table in one.mean.items():
        np.testing.assert_allclose(table, other.mean[name], rtol=tolerance, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(one.variance[name], other.variance[name], rtol=20 * tolerance, atol=1e-6)


@pytest.mark.parametrize("fold", [1, 2], ids=["plain", "frames"])
def test_the_order_of_axes_does_not_matter(fold: int):
    first, last = (measure(build(lambda way=way: Denoiser(way, fold))) for way in (True, False))
    same(first, last)


def test_tokens_are_left_out_alike_in_every_order():
    needed = SAMPLES * TOKENS * WIDTH * 4 * 5 * 4  # of 5 values in each of 4 regions
    first, last = (measure(build(lambda way=way: Denoiser(way)), memory_bytes=needed // 2) for way in (True, False))
    assert first.info.tokens == last.info.tokens == {"stride": 2}
    same(first, last)


@pytest.mark.parametrize("batch_first", [True, False])
def test_errors_of_a_batch_are_the_mean_over_its_samples(batch_first: bool):
    net = build(lambda: Denoiser(batch_first, 2))
    whole = measure(net)
    alone = [measure(net, slice(sample, sample + 1)) for sample in range(SAMPLES)]
    for name, table in whole.mean.items():
        np.testing.assert_allclose(table, np.mean([one.mean[name] for one in alone], 0), rtol=1e-3, atol=1e-6)
    assert whole.info.samples == sum(one.info.samples for one in alone)


def test_calls_of_two_shapes_are_read_each_in_its_own_layout():
    """Guidance calls the model with one sample and with all, in turn."""
    net = build(lambda: Denoiser(False, 2))
    parts = [slice(0, 1), slice(0, SAMPLES)]

    @torch.no_grad()
    def generate(seed: int) -> None:
        x = torch.randn(SAMPLES, TOKENS, 4, generator=torch.Generator().manual_seed(seed))
        latents = [x[part] for part in parts]
        for step in range(STEPS):
            latents = [x - 0.3 * net(x, torch.full((len(x),), 1 - step / STEPS)) for x in latents]

    both = soda_compile.calibrate(net, generate, generations=2, max_interval=2, calls_per_step=2)
    one, all_samples = (measure(net, part) for part in parts)
    for name, table in both.mean.items():
        expected = (one.mean[name] + SAMPLES * all_samples.mean[name]) / (1 + SAMPLES)
        np.testing.assert_allclose(table, expected, rtol=1e-3, atol=1e-6)


def test_samples_that_cannot_be_told_apart_count_as_one_and_the_log_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="soda_compile"):
        found = measure(build(lambda: Mixed(False)))
    assert np.isfinite(found.mean["relative.reuse"][1:, :, 0]).all()
    (said,) = [record.getMessage() for record in caplog.records if "as one sample" in record.getMessage()]
    assert said.startswith("errors of blocks.0.")
    assert "and 3 more" in said
    assert "after mean" in said


def test_what_has_samples_elsewhere_is_not_pruned():
    x, t = torch.randn(SAMPLES, TOKENS, 4), torch.ones(SAMPLES)
    net = build(lambda: Denoiser(False))
    structure = soda_compile.inspect(net, x, t)
    reasons = {note.subject: note.reason for note in soda_compile.why(structure)}
    assert set(reasons) == set(structure.calls[1].region_names)  # equal blocks share their reasons
    attention, mlp = structure.calls[1].region_names
    assert "no token axis" in reasons[attention]
    assert "its samples are on axis 1, not on axis 0" in reasons[mlp]
    found = measure(net, prune_scores=("feature_mean",))
    assert np.isnan(found.mean["relative.prune.feature_mean"]).all()
    assert found.region_prune_flops is not None
    assert not found.region_prune_flops.any()
    actions = [[COMPUTE, prune(0.5) if name == mlp else COMPUTE] for name in structure.region_names]
    plan = Plan("", structure.region_names, actions, pruning=Pruning("feature_mean"))
    with pytest.raises(PlanError, match=r"'blocks.0.linear2' cannot prune tokens: its samples are on axis 1"):
        require_token_axes(structure, plan)
    assert not np.isnan(
        measure(build(lambda: Denoiser(True)), prune_scores=("random",)).mean["relative.prune.random"]
    ).all()
