"""Conditioning apart from the blocks, and ahead of the steps."""

from typing import Any

import pytest
import torch
from conditioned import STEPS, assert_close, compiled_with, generate, knowing_timesteps, subject
from families import FAMILIES, structure_of
from plain_models import DitBlock, Listed, inputs
from thorough import gated
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import soda_compile
from soda_compile.backend.options import check_options
from soda_compile.compiler.conditioning import separate_conditioning
from soda_compile.compiler.conditioning_stage import build_stage
from soda_compile.compiler.lowering import Lowering
from soda_compile.errors import CaptureError, OptionError
from soda_compile.ir.structure import Structure
from soda_compile.measure.inspection import inspect
from soda_compile.plans.plan import compute_all_plan
from soda_compile.runtime import conditioning_cache, unchanged


def separated(structure: Structure) -> tuple[Structure, Structure]:
    """Conditioning and remainder of a denoiser that has both."""
    split = separate_conditioning(structure)
    assert split is not None
    return split


def test_whole_steps_too(eager: None, ahead: list[int]):
    model, calls, plan = subject()
    expected = generate(model, compiled_with(model, plan, conditioning="step"), calls)
    compiled = compiled_with(model, plan, granularity="step")
    for _ in range(2):
        assert_close(generate(model, compiled, calls), expected)
    assert ahead == list(range(STEPS))


@pytest.mark.parametrize("name", gated("dit", "flux", "wan", others=FAMILIES))
def test_the_remainder_takes_what_conditioning_gives(name: str):
    structure = structure_of(name)
    conditioning, remainder = separated(structure)
    assert "timestep" in {name for call in conditioning.calls for name in call.inputs}
    assert remainder.inputs == (*structure.inputs, *conditioning.outputs)
    assert (remainder.region_names, remainder.fingerprint) == (structure.region_names, structure.fingerprint)


# tests/models compares the numbers of all others
@pytest.mark.parametrize("name", gated("dit", others=["flux", "latte"]))
def test_trajectories_give_what_steps_alone_give(name: str, eager: None, ahead: list[int]):
    model, calls, plan = subject(name)
    expected = generate(model, compiled_with(model, plan, conditioning="step"), calls)
    compiled = compiled_with(model, plan)
    for expected_steps in ([], list(range(STEPS)), list(range(STEPS))):
        ahead.clear()
        assert_close(generate(model, compiled, calls), expected)
        assert ahead == expected_steps


def test_the_stage_gives_for_all_steps_at_once_what_it_gives_for_each():
    model, calls, _ = subject()
    structure = structure_of("dit")
    conditioning, _ = separated(structure)
    stage = build_stage(conditioning, STEPS, structure.weight_bytes, Lowering(target="eager"), asked=True)
    assert stage is not None
    assert stage.all_steps is not None
    assert [structure.paths[index] for index in stage.conditions] == ["timestep", "class_labels"]
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    inputs = [[weights[path] if path in weights else call[path] for path in structure.paths] for call in calls]
    stacked = list(inputs[0])
    for index in stage.conditions:
        stacked[index] = torch.stack([step[index] for step in inputs])
    with torch.no_grad():
        each = [conditioning_cache.run_once(stage.one_step, step) for step in inputs]
        table = conditioning_cache.run_once(stage.all_steps, stacked)
    assert len(table) == len(conditioning.outputs)
    for number, values in enumerate(table):
        assert_close(list(values.unbind(0)), [step[number] for step in each])


@pytest.mark.thorough
def test_as_compiled_by_inductor(ahead: list[int]):
    torch.manual_seed(0)
    model, calls = Listed(DitBlock).eval(), [inputs(step, STEPS) for step in range(STEPS)]
    plan = compute_all_plan(inspect(model, **calls[0]).region_names, STEPS)
    plain = torch.compile(model, fullgraph=True, dynamic=False)
    with torch.no_grad():
        expected = [leaf for inputs in calls for leaf in tree_leaves(plain(**inputs))]
    compiled = compiled_with(model, plan)
    for _ in range(2):
        assert_close(generate(model, compiled, calls), expected)
    assert ahead == list(range(STEPS))


def test_what_steps_are_given_is_compared(eager: None, ahead: list[int]):
    model, calls, plan = subject()

    def changed(name: str, change: Any, first: int = 0) -> list[dict[str, Any]]:
        return [{**call, name: change(call[name])} if step >= first else call for step, call in enumerate(calls)]

    every = list(range(STEPS))
    runs = [
        (calls, []),
        (changed("class_labels", lambda labels: (labels + 1) % 3), every),  # another request
        (changed("class_labels", Tensor.clone), every),  # equal labels in new tensors
        (changed("class_labels", lambda labels: (labels + 1) % 3, 3), every[:3]),  # labels change on the way
        (calls, []),
        (calls, every),
        (changed("timestep", lambda time: time - 1, 4), every[:4]),  # timesteps change on the way
        (changed("timestep", lambda time: time - 1), []),  # another schedule
        (changed("timestep", lambda time: time - 1), every),
    ]
    reference = compiled_with(model, plan, conditioning="step")
    expected = [generate(model, reference, run) for run, _ in runs]
    compiled = compiled_with(model, plan)
    for (run, steps), theirs in zip(runs, expected, strict=True):
        ahead.clear()
        assert_close(generate(model, compiled, run), theirs)
        assert ahead == steps


def test_labels_that_are_overwritten_are_noticed(eager: None, ahead: list[int]):
    model, calls, plan = subject()
    compiled = compiled_with(model, plan)
    generate(model, compiled, calls)
    labels = calls[0]["class_labels"].clone()
    with torch.no_grad(), soda_compile.trajectory(model):
        for step, call in enumerate(calls):
            if step == 2:
                labels += 1
            compiled(**{**call, "class_labels": labels})
    assert ahead == [0, 1]


def overwritten(weight: nn.Parameter) -> None:
    weight.add_(1)


def pointed_elsewhere(weight: nn.Parameter) -> None:
    weight.data = weight + 1


@pytest.mark.parametrize("change", gated(overwritten, others=[pointed_elsewhere]))
def test_weights_that_change_on_the_way_are_noticed(change: Any, eager: None, ahead: list[int]):
    def draw(conditioning: str) -> tuple[list[Tensor], list[int]]:
        model, calls, plan = subject()
        weight = model.transformer_blocks[0].norm1.linear.weight  # type: ignore[union-attr,index]
        compiled = compiled_with(model, plan, conditioning)
        generate(model, compiled, calls)
        ahead.clear()
        found = []
        with torch.no_grad(), soda_compile.trajectory(model):
            for step, call in enumerate(calls):
                if step == 2:
                    change(weight)
                found += tree_leaves(compiled(**call))
        steps = list(ahead)
        assert_close(generate(model, compiled, calls), generate(model, compiled_with(model, plan, "step"), calls))
        return found, steps

    (found, steps), (expected, _) = draw("trajectory"), draw("step")
    assert_close(found, expected)
    assert steps == [0, 1]


def test_weights_that_are_put_in_place_for_each_call_are_left_to_the_steps(eager: None, ahead: list[int]):
    model, calls, plan = subject()
    plan = knowing_timesteps(plan, calls)
    weight = model.transformer_blocks[0].norm1.linear.weight  # type: ignore[union-attr,index]
    expected = generate(model, compiled_with(model, plan, "step"), calls)
    compiled = compiled_with(model, plan)
    for steps in ([0], [], []):
        ahead.clear()
        found = []
        with torch.no_grad(), soda_compile.trajectory(model):
            for call in calls:
                weight.data = weight.data.clone()
                found += tree_leaves(compiled(**call))
        assert_close(found, expected)
        assert ahead == steps


@pytest.mark.parametrize("conditioning", ["auto", "trajectory"])
def test_a_plan_that_knows_the_timesteps_foretells_the_first_trajectory(
    conditioning: str, eager: None, ahead: list[int]
):
    model, calls, plan = subject()
    plan = knowing_timesteps(plan, calls)
    late = [{**call, "class_labels": call["class_labels"] + (step > 2)} for step, call in enumerate(calls)]
    reference = compiled_with(model, plan, conditioning="step")
    expected = {id(run): generate(model, reference, run) for run in (calls, late)}
    compiled = compiled_with(model, plan, conditioning)
    every = list(range(STEPS))
    for run, steps in [(calls, every), (late, every[:3]), (late, every[:3]), (calls, every)]:
        ahead.clear()
        assert_close(generate(model, compiled, run), expected[id(run)])
        assert ahead == steps


def test_what_is_computed_ahead_is_kept_within_the_bound_on_memory(eager: None, ahead: list[int]):
    _, calls, plan = subject()
    plan = knowing_timesteps(plan, calls)

    def peak(conditioning: str, bound: int | None = None) -> int:
        torch._dynamo.reset()
        ahead.clear()
        model, calls, _ = subject()
        generate(model, compiled_with(model, plan, conditioning, slot_memory_bytes=bound), calls)
        (counted,) = soda_compile.stats(model).values()
        assert (counted["calls"], counted["misses"]) == (STEPS, {})
        assert counted["slot_bytes"] == 0
        assert ("memory of conditions of all steps" in counted["reasons"]) == (bound is not None)
        return int(counted["slot_bytes_peak"])

    slots = peak("step")
    assert peak("auto") > slots
    assert ahead == list(range(STEPS))
    assert peak("auto", slots) == slots
    assert not ahead


def test_where_the_host_cannot_read_it_takes_a_schedule(eager: None, ahead: list[int], monkeypatch: pytest.MonkeyPatch):
    for module in (conditioning_cache, unchanged):
        monkeypatch.setattr(module, "on_host", lambda value: False)
    model, calls, plan = subject()
    same = [{**call, "class_labels": calls[0]["class_labels"]} for call in calls]
    compiled = compiled_with(model, plan)
    times = [float(call["timestep"][0]) for call in calls]
    every = list(range(STEPS))
    copies = [{**call, "class_labels": call["class_labels"].clone()} for call in calls]
    for run, schedule, steps in [
        (same, None, []),
        (same, None, []),  # nobody says which timesteps come
        (same, times, []),
        (same, torch.tensor(times), every),
        (copies, times, [0]),  # a new tensor could hold anything
        (same, times, []),
        (same, [*times[:-1], 0.5], []),  # another schedule
    ]:
        ahead.clear()
        generate(model, compiled, run, schedule)
        assert ahead == steps


def test_conditioning_is_left_out_of_the_steps(eager: None):
    structure = structure_of("dit")
    conditioning, remainder = separated(structure)
    assert conditioning.calls[0].name == "transformer_blocks.0 (conditioning)"
    assert conditioning.flops + remainder.flops == structure.flops
    inside = [node.name for call in remainder.calls for node in call.block.module.graph.nodes]
    assert not any("silu" in name or "embedding" in name for name in inside)


class Plain(nn.Module):
    """A block without a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def test_a_model_without_conditioning_stays_as_it_is(eager: None, caplog: pytest.LogCaptureFixture):
    model, x = Plain(), torch.randn(2, 4, 8)
    structure = inspect(model, x)
    assert separate_conditioning(structure) is None
    compiled = compiled_with(model, compute_all_plan(structure.region_names, 2))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    assert "conditioning='trajectory' changes nothing: no matrix product depends on the timestep" in caplog.text


class Rows(Plain):
    """Its sample has as many axes as a pooled text."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x + timestep[:, None])


def test_a_sample_of_two_axes_is_not_taken_for_conditioning(eager: None):
    structure = inspect(Rows(), torch.randn(4, 8), torch.ones(4))
    assert structure.region_names
    assert separate_conditioning(structure) is None


@pytest.mark.parametrize("around", gated(torch.inference_mode, others=[lambda: torch.autocast("cpu", torch.bfloat16)]))
def test_other_modes_of_torch(around: Any, eager: None, ahead: list[int]):
    model, calls, plan = subject()
    with around():
        expected = generate(model, compiled_with(model, plan, conditioning="step"), calls)
        compiled = compiled_with(model, plan)
        for _ in range(2):
            for ours, theirs in zip(generate(model, compiled, calls), expected, strict=True):
                assert (ours - theirs).norm() < 0.05 * theirs.norm()  # bfloat16 is 2% off float32 here
    assert ahead == list(range(STEPS))


def test_what_cannot_be_stacked_is_refused_where_it_is_asked_for(eager: None, monkeypatch: pytest.MonkeyPatch):
    def refuses(*arguments: Any) -> None:
        raise RuntimeError("vmap: no rule for aten::example")

    monkeypatch.setattr("soda_compile.compiler.conditioning_stage.add_axis", refuses)
    model, calls, plan = subject()
    compiled = compiled_with(model, plan)
    with pytest.raises(Exception, match=r"no rule for aten::example. Compile with conditioning='step'") as raised:
        generate(model, compiled, calls)
    assert isinstance(raised.value.__cause__ or raised.value, CaptureError) or "CaptureError" in str(raised.value)
    by_itself = compiled_with(model, knowing_timesteps(plan, calls), "auto")
    assert_close(generate(model, by_itself, calls), generate(model, compiled_with(model, plan, "step"), calls))


def test_more_than_the_weights_is_not_kept(eager: None, ahead: list[int], monkeypatch: pytest.MonkeyPatch, caplog: Any):
    monkeypatch.setattr("soda_compile.compiler.conditioning_stage.MOST", 1e-3)
    model, calls, plan = subject()
    expected = generate(model, compiled_with(model, plan, conditioning="step"), calls)
    compiled = compiled_with(model, plan)
    for _ in range(2):
        assert_close(generate(model, compiled, calls), expected)
    assert not ahead
    assert "conditioning is computed at each step: for all 6 it takes" in caplog.text


def test_an_unknown_value_is_refused():
    message = r"'conditioning' is 'layer', but must be one of 'auto', 'step', 'trajectory'"
    with pytest.raises(OptionError, match=message):
        check_options({"conditioning": "layer"})
