"""Peers of the benchmark suite really compute the steps of the mask, and no others."""

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.suite.configs import Config, _dit, _flux, _wan
from benchmarks.suite.counting import flops_of
from benchmarks.suite.masks import anchor_steps, computed
from benchmarks.suite.models import make_inputs, make_model
from benchmarks.suite.peers import PEERS
from benchmarks.suite.runner import Runner, bytes_in, run

STEPS, INTERVAL = 11, 4
MASK = computed(STEPS, INTERVAL)
TINY = {
    "dit": Config("dit", "", "dit", "DiTTransformer2DModel", _dit(8, 2, 16, 3), 2, (4, 8, 8)),
    "flux": Config("flux", "", "flux", "FluxTransformer2DModel", _flux(1, 2, 2, 24, 20), 1, (16, 64), 6),
    "wan": Config("wan", "", "wan", "WanTransformer3DModel", _wan(1, 64, 3, 24), 1, (16, 1, 8, 8), 6),
}
ATTENTIONS = {"dit": ("attn1",), "flux": ("attn",), "wan": ("attn1", "attn2")}


def tiny(name):
    config = TINY[name]
    model = make_model(config, "cpu", torch.float32)
    return model, make_inputs(config, "cpu", torch.float32, STEPS)


def steps_run(runner: Runner, calls: list, kind: str) -> dict[str, list[int]]:
    """For each module of a kind the steps at which its own forward ran."""
    ran: dict[str, list[int]] = {}
    now = [0]
    for name, module in runner.model.named_modules():
        if name.split(".")[-1] == kind:
            module.register_forward_hook(lambda *_, name=name: ran.setdefault(name, []).append(now[0]))
    plain = runner.begin_step

    def begin_step(step: int) -> None:
        now[0] = step
        plain(step)

    run(Runner(runner.model, reset=runner.reset, begin_step=begin_step), runner.model, calls)
    return ran


# The projection of queries runs where, and only where, an attention is computed.
@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("peer", ["FirstBlockCache", "MagCache", "TaylorSeer", "PAB"])
def test_a_peer_computes_the_steps_of_the_mask(peer, name):
    model, calls = tiny(name)
    runner = PEERS[peer](model, MASK, INTERVAL)
    ran = steps_run(runner, calls, "to_q")
    first = next(iter(ran))
    assert len(ran) >= 3
    for module, steps in ran.items():
        expected = range(STEPS) if peer == "FirstBlockCache" and _block(module) == _block(first) else anchors()
        assert steps == list(expected), module


@pytest.mark.parametrize("peer", ["MagCache", "TaylorSeer", "FirstBlockCache", "PAB"])
def test_a_second_trajectory_is_like_the_first(peer):
    model, calls = tiny("dit")
    runner = PEERS[peer](model, MASK, INTERVAL)
    outputs = [[], []]
    for kept in outputs:
        run(runner, lambda *, kept=kept, **inputs: kept.append(model(**inputs)[0]), calls)
    assert all(torch.equal(first, second) for first, second in zip(*outputs, strict=True))
    assert bytes_in(runner.held()) > 0


def test_taylorseer_lite_needs_the_last_projection():
    model, _ = tiny("dit")
    with pytest.raises(NotImplementedError, match="proj_out"):
        PEERS["TaylorSeer lite"](model, MASK, INTERVAL)


@pytest.mark.skipif(find_spec("cache_dit") is None, reason="cache-dit is not installed")
@pytest.mark.parametrize("forecast", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_cache_dit_computes_the_steps_of_the_mask(name, forecast):
    from benchmarks.suite.cache_dit_peer import dual_block_cache

    model, calls = tiny(name)
    runner = dual_block_cache(model, MASK, forecast)
    for _ in range(2):
        ran = steps_run(runner, calls, "to_q")
    counts = Counter(len(set(steps)) for steps in ran.values())
    assert counts[STEPS] == len(ATTENTIONS[name])  # the first block
    assert counts[len(anchors())] == sum(counts.values()) - counts[STEPS] > 0
    assert all(set(steps) in (set(range(STEPS)), set(anchors())) for steps in ran.values())


def test_flops_see_attention():
    query = torch.randn(1, 2, 8, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert flops_of(lambda: attend(query, query, query), "cpu") == 2 * (2 * 2 * 8 * 8 * 4)


def test_memory_counts_each_storage_once():
    kept = torch.zeros(10)
    assert bytes_in({"a": [kept, kept[2:]], "b": Runner(torch.nn.Identity(), held=lambda: None)}) == 40


def anchors() -> tuple[int, ...]:
    return anchor_steps(STEPS, INTERVAL)


def _block(module: str) -> str:
    return ".".join(module.split(".")[:2])
