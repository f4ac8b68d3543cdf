import math

import pytest
import torch
from golden import golden, text
from toys import Gated, gated, joint, seeded
from tracing import parameters_of, run

from soda_compile.analysis.token_axes import wanted_tokens
from soda_compile.ir.roles import Slot, StepConstant
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.prune_tokens import PruneTokens
from soda_compile.passes.sink_gathers import SinkGathers
from soda_compile.passes.track_tokens import TrackTokens
from soda_compile.plans.actions import prune
from soda_compile.plans.pruning import Pruning


def test_golden():
    graph, region = gated()
    change = PruneTokens(0, region, ("h",), prune(0.5), Pruning("feature_mean"), store=True)
    result = change.apply(graph)
    assert (result.changed, result.skipped) == (("linear (2 of 3 tokens)",), ())
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %slot_linear: f32[2, 3, 4] = input
        %silu: f32[2, 3, 4] = silu(%h)
        %linear: f32[2, 3, 4] = linear(%silu, %p_linear_weight)
        %mean_dim: f32[2, 3] = mean(%h, (-1))
        %topk_default: (f32[2, 2], i64[2, 2]) = topk(%mean_dim, 2)
        %getitem: i64[2, 2] = getitem(%topk_default, 1)
        %reshape_default: i64[2, 2, 1] = reshape(%getitem, (2, 2, 1))
        %expand_default: i64[2, 2, 4] = expand(%reshape_default, (2, 2, 4))
        %gather_default: f32[2, 2, 4] = gather(%linear, 1, %expand_default)
        %scatter_src: f32[2, 3, 4] = scatter(%slot_linear, 1, %expand_default, %gather_default)
        %copy__default: f32[2, 3, 4] = copy_(%slot_linear, %scatter_src)
        %mul: f32[2, 3, 4] = mul(%gate, %scatter_src)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)


def test_tracking_is_golden():
    graph, region = gated()
    result = TrackTokens(0, region, ("h",), Pruning("drift", staleness=0.5)).apply(graph)
    assert (result.changed, result.skipped) == (("linear",), ())
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %input_h: f32[2, 3, 4] = input
        %step: f32[] = input
        %step_h: f32[2, 3] = input
        %silu: f32[2, 3, 4] = silu(%h)
        %linear: f32[2, 3, 4] = linear(%silu, %p_linear_weight)
        %mul: f32[2, 3, 4] = mul(%gate, %linear)
        %add: f32[2, 3, 4] = add(%h, %mul)
        %copy__default: f32[2, 3, 4] = copy_(%input_h, %h)
        %expand_default: f32[2, 3] = expand(%step, (2, 3))
        %copy__default_1: f32[2, 3] = copy_(%step_h, %expand_default)
        return (%add)
    """)


def test_a_score_of_the_present_tracks_nothing():
    graph, region = gated()
    before = text(graph)
    assert TrackTokens(0, region, ("h",), Pruning("feature_mean")).apply(graph).changed == ()
    assert text(graph) == before


def drift(h, inputs):
    return (h - inputs["then_h"]).square().sum(-1)


def stale_drift(h, inputs):
    score = drift(h, inputs)
    return score / score.abs().mean(-1, keepdim=True) + 0.5 * (7 - inputs["step_sum_dim_int_list"])


SCORES = {
    "feature_mean": (Pruning("feature_mean"), lambda h, inputs: h.mean(-1)),
    "drift": (Pruning("drift"), drift),
    "drift and staleness": (Pruning("drift", staleness=0.5), stale_drift),
    "random": (Pruning("random"), lambda h, inputs: inputs["random_h"].expand(len(h), -1)),
    "shared by groups": (
        Pruning("feature_mean", groups=2),
        lambda h, inputs: h.mean(-1).reshape(2, 1, 3).mean(0).repeat(2, 1),
    ),
}


@pytest.mark.parametrize(("pruning", "score"), SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("sunk", [False, True])
def test_the_tokens_of_highest_score_are_fresh(pruning, score, sunk):
    graph, region = gated()
    PruneTokens(0, region, ("h",), prune(0.5), pruning, store=True, track=True).apply(graph)
    if sunk:
        SinkGathers(region).apply(graph)
    DeadCode().apply(graph)
    graph.lint()
    model = seeded(Gated())
    h, gate = torch.randn(2, 3, 4), torch.randn(2, 1, 4)
    inputs = {"h": h, "gate": gate, **parameters_of(model)}
    for node in graph.find_nodes(op="placeholder"):
        inputs.setdefault(node.name, torch.rand(node.meta["val"].shape))
    inputs["step"] = torch.tensor(7.0)
    slot = inputs["slot_linear"].clone()
    chosen = score(h, inputs).argsort(dim=-1, descending=True)[:, :2]
    fresh = model.linear(torch.nn.functional.silu(h)).detach()
    expected = slot.clone()
    for row in range(2):
        expected[row, chosen[row]] = fresh[row, chosen[row]]
    tracked = {name: value.clone() for name, value in inputs.items() if name.startswith(("then_", "step_"))}
    known = {node.name for node in graph.find_nodes(op="placeholder")}
    (result,) = run(graph, **{name: value for name, value in inputs.items() if name in known})
    torch.testing.assert_close(result, h + gate * expected)
    torch.testing.assert_close(inputs["slot_linear"], expected)
    for name, before in tracked.items():
        now = h if name.startswith("then_") else torch.full((2, 3), 7.0)
        for row in range(2):
            before[row, chosen[row]] = now[row, chosen[row]]
        torch.testing.assert_close(inputs[name], before, rtol=0, atol=0)


def test_not_in_place_leaves_what_it_reads():
    graph, region = gated()
    PruneTokens(0, region, ("h",), prune(0.5), Pruning("feature_mean"), store=True, in_place=False).apply(graph)
    model = seeded(Gated())
    slot, target = torch.rand(2, 3, 4), torch.zeros(2, 3, 4)
    before = slot.clone()
    run(
        graph,
        h=torch.randn(2, 3, 4),
        gate=torch.randn(2, 1, 4),
        slot_linear=slot,
        target_linear=target,
        **parameters_of(model),
    )
    torch.testing.assert_close(slot, before, rtol=0, atol=0)
    assert target.any()


@pytest.mark.parametrize("use", ["keep", "take"])
def test_a_shared_index_goes_through_its_slot(use):
    graph, region = gated()
    PruneTokens(3, region, ("h",), prune(0.5), Pruning("drift"), use=use).apply(graph)
    roles = [node.meta["role"] for node in graph.find_nodes(op="placeholder") if "role" in node.meta]
    assert Slot("index", 3, 0) in roles
    assert (Slot("input", 3, 0) in roles) == (use == "keep")
    assert StepConstant("number") not in roles


def test_streams_of_a_region_have_rates_of_their_own():
    region = joint()[1]
    assert [wanted_tokens(region, cut, prune(0.5)) for cut in range(2)] == [2, 2]
    assert [wanted_tokens(region, cut, prune(0.75, 0.5)) for cut in range(2)] == [1, 1]
    assert all(wanted_tokens(region, 0, prune(rate / 8)) == 3 - math.floor(rate * 3 / 8) for rate in range(1, 8))
