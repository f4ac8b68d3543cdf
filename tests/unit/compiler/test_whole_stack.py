"""One value for a whole stack of blocks: what it is made of, what it costs, and where else it is followed."""

from dataclasses import replace
from typing import Any

import pytest
import small_denoiser as small
import torch
from eager_reference import extrapolate
from families import structure_of
from torch import Tensor, nn

import soda_compile
from soda_compile.compiler.kept_values import with_slots
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.compiler.whole_stack import stack_bytes, whole_stack
from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE
from soda_compile.plans.plan import Plan

ROW = "CCr1C"
BYTES = small.TOKENS * small.WIDTH * 4 * 2  # two samples


def plan(row: str = ROW, **changes: Any) -> Plan:
    return small.make_plan([row] * len(small.REGIONS), slots="stack", **changes)


def reference(model: small.Denoiser, plan: Plan, calls: Any) -> Tensor:
    """The blocks add nothing but what is kept; the stream without them is the input."""
    added: list[tuple[int, Tensor]] = []
    outputs = []
    for step, (x, timestep) in enumerate(calls):
        action = plan.actions[0][step]
        with torch.no_grad():
            if action == COMPUTE:
                stream, gate = x, 1 + torch.cos(timestep / 1000)[:, None, None]
                for block in model.blocks:
                    stream = block(stream, gate)
                added.append((step, stream - x))
            else:
                stream = x + extrapolate(added[-1 - action.order :], step)
            outputs.append(model.last(stream))
    return torch.stack(outputs)


@pytest.mark.usefixtures("eager")
def test_blocks_without_regions_are_nothing_where_all_they_do_is_to_add():
    structure = soda_compile.inspect(small.Denoiser(), *small.calls()[0])
    made = whole_stack(structure)
    assert next(call.name for call in made.calls if call not in structure.calls) == "(stack)"
    assert len(made.calls) == len(structure.calls) + 1
    assert made.region_names == (*structure.region_names, "(stack)")
    assert made.regions[-1].memory_bytes == BYTES == stack_bytes(structure)
    assert made.regions[-1].flops == structure.flops - structure.calls[-1].block.flops
    program = build_program(structure, plan(), Lowering(target="eager"))
    assert program.slot_memory_bytes == 2 * BYTES
    assert program.flops[2] == program.flops[3] == structure.calls[-1].block.flops
    assert len(program.steps[2]) == 1
    each = build_program(structure, small.make_plan([ROW] * len(small.REGIONS)), Lowering(target="eager"))
    assert each.slot_memory_bytes == 2 * BYTES * len(small.REGIONS)


@pytest.mark.usefixtures("eager")
def test_it_gives_what_eager_gives():
    model, calls = small.Denoiser(), small.calls()
    compiled = small.compiled(model, plan=plan())
    outputs = small.trajectory(compiled, model, calls)
    torch.testing.assert_close(outputs, reference(model, plan(), calls), **small.ROUNDING)
    assert torch.equal(small.trajectory(compiled, model, calls), outputs)
    regions = small.trajectory(small.compiled(small.Denoiser(), plan=small.make_plan([ROW] * 4)), model, calls)
    assert not torch.allclose(regions, outputs, atol=1e-3), "gates of the present step make a difference"


@pytest.mark.usefixtures("eager")
def test_what_computes_everything_stays_as_it_is():
    structure = soda_compile.inspect(small.Denoiser(), *small.calls()[0])
    everything = plan("C" * small.STEPS)
    assert with_slots(structure, everything) == (structure, everything)


class AnyTokens(small.Block):
    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.mlp(x)


class Sized(small.Denoiser):
    """Any number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AnyTokens() for _ in range(small.LAYERS))


@pytest.mark.usefixtures("eager")
def test_any_size():
    model = Sized()
    names = soda_compile.inspect(model, *small.calls()[0]).region_names
    made = Plan("", names, (plan().actions[0],) * len(names), slots="stack")

    def calls(batch: int, tokens: int) -> list[small.Call]:
        draw = torch.Generator().manual_seed(0)
        return [
            (torch.randn(batch, tokens, small.WIDTH, generator=draw), torch.full((batch,), t)) for t in small.TIMESTEPS
        ]

    dynamic = torch.compile(model, backend="soda", options={"plan": made}, fullgraph=True, dynamic=True)
    for sizes in ((2, 6), (3, 11)):
        static = small.compiled(Sized(), plan=made)
        torch.testing.assert_close(
            small.trajectory(dynamic, model, calls(*sizes)), small.trajectory(static, model, calls(*sizes))
        )
        torch._dynamo.reset()


@pytest.mark.usefixtures("eager")
def test_generations_share_a_batch():
    model = small.Denoiser()
    small.check_shared_batch(model, plan(), lambda calls: reference(model, plan(), calls))


class Between(small.Denoiser):
    """Does a product between blocks, which no region has."""

    def __init__(self) -> None:
        super().__init__()
        self.between = nn.Linear(small.WIDTH, small.WIDTH)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(self.between(x), gate)
        return self.last(x)


@pytest.mark.usefixtures("eager")
def test_much_work_between_the_blocks_is_refused():
    structure = soda_compile.inspect(Between(), *small.calls()[0])
    assert stack_bytes(structure) is None
    with pytest.raises(PlanError, match=r'\d+% of this model\'s work lies between their regions.*slots="region"'):
        with_slots(structure, Plan("", structure.region_names, (plan().actions[0],) * 4, slots="stack"))


def test_joint_attention_keeps_one_value_of_all_its_tokens():
    structure = structure_of("flux")
    tokens, joint = 16, 22  # of the image, which the last block returns alone, and with those of the text
    assert stack_bytes(structure) == max(region.memory_bytes for region in structure.regions) * tokens // joint


@pytest.mark.parametrize(
    ("rows", "message"),
    [(("CCr1C", "CCrrC"), r"'blocks.1' has \(.*slots=\"region\""), (("CCrrC", "CC1rC"), "all regions do the same")],
)
def test_regions_that_differ_are_refused(rows: tuple[str, str], message: str):
    actions = tuple(tuple(small.SYMBOLS[symbol] for symbol in row) for row in rows)
    with pytest.raises(PlanError, match=message):
        Plan("", ("blocks.0", "blocks.1"), actions, slots="stack")


def test_the_file_says_so_where_it_is_not_the_default():
    assert Plan.from_json(plan().to_json()) == plan()
    assert '"slots": "stack"' in plan().to_json()
    other = replace(plan(), slots="region")
    assert "slots" not in other.to_json()
    assert other != plan()
