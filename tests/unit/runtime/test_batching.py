"""Generations at different steps that share calls: each gives what it gives alone, and keeps values of its own."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES
from layout_models import Denoiser, Mixed, encoder_layers_unfused
from plain_models import DitBlock, Listed
from random_plans import random_plan
from thorough import gated
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tracing import statistics

import soda_compile
from soda_compile.plans.actions import COMPUTE, REUSE
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning

STEPS, GENERATIONS = 6, 3
Calls = list[dict[str, Any]]  # the arguments of one generation, by step


pytestmark = pytest.mark.usefixtures("eager_throughout")


@pytest.fixture
def unfused() -> Iterator[None]:
    with encoder_layers_unfused():
        yield


def simple_calls(seed: int, rows: int = 1, tokens: int = 9) -> Calls:
    generator = torch.Generator().manual_seed(seed)
    start, direction = torch.randn(2, rows, tokens, 4, generator=generator)
    return [
        {"x": start + direction * step / STEPS, "t": torch.full((rows,), 1 - step / STEPS)} for step in range(STEPS)
    ]


def plan_of(model: nn.Module, call: dict[str, Any], seed: int = 5, **options: Any) -> Plan:
    structure = soda_compile.inspect(model, **call)
    names = structure.region_names
    return random_plan(seed, names, STEPS, fingerprint=structure.fingerprint, **options)


def alone(model: nn.Module, plan: Plan, generations: Sequence[Calls]) -> list[list[Tensor]]:
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, dynamic=False)

    def run(calls: Calls) -> list[Tensor]:
        with torch.no_grad(), soda_compile.trajectory(model):
            return [tree_leaves(compiled(**call))[0] for call in calls]

    return [run(calls) for calls in generations]


def together(
    batched: soda_compile.BatchedGenerations, calls: Sequence[Calls], joins: Sequence[int], rows: int = 1
) -> list[list[Tensor]]:
    """All outputs of generations that join at different times; in each round, those that are under way are stepped."""
    found: list[list[Tensor]] = [[] for _ in calls]
    open_now: dict[int, soda_compile.Generation] = {}
    for turn in range(max(joins) + STEPS):
        open_now |= {number: batched.new_generation() for number, join in enumerate(joins) if join == turn}
        steps = {number: calls[number][turn - joins[number]] for number in open_now}
        outputs = tree_leaves(batched(list(open_now.values()), **joined(list(steps.values()), rows)))[0]
        for number, output in zip(steps, outputs.split(rows), strict=True):
            found[number].append(output)
            if len(found[number]) == STEPS:
                open_now.pop(number).end()
    return found


def joined(calls: Calls, rows: int) -> dict[str, Any]:
    def join(*values: Any) -> Any:
        divided = isinstance(values[0], Tensor) and values[0].ndim and values[0].shape[0] == rows
        return torch.cat(values) if divided else values[0]

    return {name: join(*(call[name] for call in calls)) for name in calls[0]}


def compare(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for mine, its in zip(found, expected, strict=True):
        for one, other in zip(mine, its, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = Listed(DitBlock).eval().requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(scope="module")
def plan(model: nn.Module) -> Plan:
    return plan_of(model, simple_calls(0)[0])


@pytest.mark.parametrize(
    ("joins", "rows"), gated(((0, 1, 2, 4), 1), ((0, 0, 3, 3), 2), others=[((0, 0, 0, 0), 1), ((0, 1, 2, 4), 2)])
)
def test_generations_give_what_they_give_alone(model: nn.Module, plan: Plan, joins: tuple[int, ...], rows: int):
    calls = [simple_calls(seed, rows) for seed in range(len(joins))]
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2, 4))
    expected = alone(model, plan, calls)
    compare(together(batched, calls, joins, rows), expected)
    with torch.no_grad():
        assert not torch.allclose(expected[0][-1], model(**calls[0][-1]), atol=1e-2), "the plan changes nothing"


@pytest.mark.parametrize("name", gated("dit", others=["flux", "wan", "latte"]))
def test_families(name: str):
    """Labels; positions that all share and two streams; videos; frames folded into the samples."""
    family = FAMILIES[name]
    model = family.build()
    whole = family.trajectory(STEPS, GENERATIONS)
    calls = [
        [
            {
                key: value[number : number + 1]
                if isinstance(value, Tensor) and value.ndim and value.shape[0] == GENERATIONS
                else value
                for key, value in call.items()
            }
            for call in whole
        ]
        for number in range(GENERATIONS)
    ]
    plan = plan_of(model, calls[0][0])
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2))
    compare(together(batched, calls, (0, 0, 2)), alone(model, plan, calls))


@pytest.mark.parametrize(("batch_first", "fold"), gated((False, 2), others=[(False, 1), (True, 1), (True, 2)]))
@pytest.mark.usefixtures("unfused")
def test_samples_on_any_axis(batch_first: bool, fold: int):
    torch.manual_seed(0)
    model = Denoiser(batch_first, fold).eval().requires_grad_(False)
    calls = [simple_calls(seed, tokens=8) for seed in range(3)]
    plan = plan_of(model, calls[0][0])
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2))
    compare(together(batched, calls, (0, 0, 1)), alone(model, plan, calls))


@pytest.mark.parametrize(
    "pruning",
    gated(Pruning("drift", staleness=0.5, share="block"), others=[Pruning("drift"), Pruning("random")]),
)
def test_pruned_plans(model: nn.Module, pruning: Pruning):
    calls = [simple_calls(seed) for seed in range(3)]
    plan = plan_of(model, calls[0][0], pruning=pruning)
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2))
    compare(together(batched, calls, (0, 0, 1)), alone(model, plan, calls))


def test_conditioning_ahead(model: nn.Module, plan: Plan):
    calls = [simple_calls(seed) for seed in range(3)]
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2), conditioning="trajectory")
    compare(together(batched, calls, (0, 0, 1)), alone(model, plan, calls))


def test_steps_of_one_kind_share_a_call(model: nn.Module, plan: Plan, monkeypatch: pytest.MonkeyPatch):
    """In lockstep all four share every call; where each is at another step, those of equal kinds do."""
    sizes: list[int] = []
    original = soda_compile.BatchedGenerations._run
    monkeypatch.setattr(
        soda_compile.BatchedGenerations,
        "_run",
        lambda self, group, arguments: sizes.append(len(group.generations)) or original(self, group, arguments),
    )
    calls = [simple_calls(seed) for seed in range(4)]
    together(soda_compile.BatchedGenerations(model, plan, sizes=(1, 2, 4)), calls, (0, 0, 0, 0))
    assert sizes == [4] * STEPS
    sizes.clear()

    even = every_third(plan)
    together(soda_compile.BatchedGenerations(model, even, sizes=(1, 2, 4)), calls, (0, 1, 2, 3))
    assert sum(sizes) == 4 * STEPS
    assert 2 in sizes


def every_third(plan: Plan) -> Plan:
    row = (COMPUTE, *[REUSE] * 2) * (STEPS // 3)
    return Plan(plan.fingerprint, plan.regions, (row,) * len(plan.regions))


def test_two_calls_a_step_are_two_branches(model: nn.Module, plan: Plan):
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2))
    calls = [[simple_calls(seed), simple_calls(seed + 10)] for seed in range(2)]
    expected = [alone(model, plan, each) for each in calls]
    generations = [batched.new_generation(manual=True) for _ in calls]
    for step in range(STEPS):
        for branch in range(2):
            outputs = batched(generations, **joined([each[branch][step] for each in calls], 1))
            for number, output in enumerate(outputs.split(1)):
                torch.testing.assert_close(output, expected[number][branch][step], rtol=1e-4, atol=1e-5)
        for each in generations:
            each.advance()


def test_what_the_plan_does_not_cover_is_computed_and_counted(model: nn.Module, plan: Plan):
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2))
    calls = [simple_calls(seed) for seed in range(2)]
    short, long = batched.new_generation(), batched.new_generation()
    for step in range(STEPS):
        batched([short, long], **joined([each[step] for each in calls], 1))
    before = statistics(model).total.misses.total()
    fresh = batched.new_generation()
    arguments = joined([calls[0][0], calls[1][-1]], 1)
    outputs = batched([fresh, long], **arguments)  # one call too many of one generation does not concern the other
    with torch.no_grad():
        torch.testing.assert_close(outputs, model(**arguments), rtol=1e-4, atol=1e-5)
    assert statistics(model).total.misses.total() == before + 1
    assert "steps" in statistics(model).reasons


def test_a_timestep_that_is_not_due_runs_alone(model: nn.Module, plan: Plan):
    timed = replace(plan, timesteps=tuple(1 - step / STEPS for step in range(STEPS)), timestep_input="t")
    calls = [simple_calls(seed) for seed in range(2)]
    (expected,) = alone(model, timed, calls[:1])
    batched = soda_compile.BatchedGenerations(model, timed, sizes=(1, 2))
    first, second = batched.new_generation(), batched.new_generation()
    for step in range(STEPS):
        wrong = {**calls[1][step], "t": calls[1][-1]["t"]}
        outputs = batched([first, second], **joined([calls[0][step], wrong], 1))
        torch.testing.assert_close(outputs[:1], expected[step], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(outputs[1:], model(**wrong), rtol=1e-4, atol=1e-5)
    strict = soda_compile.BatchedGenerations(model, timed, sizes=(1, 2), on_miss="error")
    with pytest.raises(soda_compile.TrajectoryError, match="step 0 is due"):
        strict([strict.new_generation()], **calls[0][3])


def test_a_call_off_the_plan_disturbs_nothing(model: nn.Module, plan: Plan):
    """It is no step of its generation, which goes on where it was, with the others."""
    timed = replace(plan, timesteps=tuple(1 - step / STEPS for step in range(STEPS)), timestep_input="t")
    calls = [simple_calls(seed) for seed in range(2)]
    expected = alone(model, timed, calls)
    batched = soda_compile.BatchedGenerations(model, timed, sizes=(1, 2))
    generations = [batched.new_generation() for _ in calls]
    for step in range(STEPS):
        if step in (0, 2):
            batched([generations[1]], **calls[1][step + 2])
        outputs = batched(generations, **joined([each[step] for each in calls], 1))
        for one, wanted in zip(outputs.split(1), expected, strict=True):
            torch.testing.assert_close(one, wanted[step], rtol=1e-4, atol=1e-5)


def test_memory_is_bounded_and_given_back(model: nn.Module, plan: Plan):
    calls = [simple_calls(seed) for seed in range(2)]
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2), slot_memory_bytes=1)
    found = together(batched, calls, (0, 0))
    with torch.no_grad():
        compare(found, [[model(**call) for call in each] for each in calls])
    gc.collect()
    assert statistics(model).budget.used_bytes == 0
    roomy = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2))
    generations = [roomy.new_generation() for _ in calls]
    roomy(generations, **joined([each[0] for each in calls], 1))
    assert statistics(model).budget.used_bytes > 0
    generations[0].end()
    del generations
    gc.collect()
    assert statistics(model).budget.used_bytes == 0


def test_compile_ahead_leaves_nothing_to_compile(model: nn.Module, plan: Plan):
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2))
    batched.compile_ahead(**simple_calls(0)[0])
    before = statistics(model).compilations
    together(batched, [simple_calls(seed) for seed in range(3)], (0, 0, 1))
    assert statistics(model).compilations == before


@pytest.mark.usefixtures("unfused")
def test_samples_that_mix_are_refused(model: nn.Module):
    torch.manual_seed(0)
    mixed = Mixed(True).eval().requires_grad_(False)
    calls = [simple_calls(seed, rows=2) for seed in range(2)]
    batched = soda_compile.BatchedGenerations(mixed, plan_of(mixed, calls[0][0]), sizes=(1, 2))
    with pytest.raises(soda_compile.CaptureError, match=r"cannot share a batch, as what blocks\.0.* keeps"):
        together(batched, calls, (0, 0), rows=2)


def _refusals() -> Iterator[tuple[Callable[[nn.Module, Plan], Any], str]]:
    make = soda_compile.BatchedGenerations
    yield lambda model, plan: make(model, plan, sizes=(2, 4)), "it must hold 1"
    yield lambda model, plan: make(torch.compile(model), plan), "before torch.compile|_orig_mod"
    yield lambda model, plan: make(model, plan, shared=("ids",)), "no argument 'ids'"
    yield lambda model, plan: make(model, plan, speed=2), "speed"

    def ended(model: nn.Module, plan: Plan) -> None:
        batched = make(model, plan)
        generation = batched.new_generation()
        generation.end()
        batched([generation], **simple_calls(0)[0])

    def uneven(model: nn.Module, plan: Plan) -> None:
        batched = make(model, plan)
        batched([batched.new_generation(), batched.new_generation()], **simple_calls(0, rows=3)[0])

    def twice(model: nn.Module, plan: Plan) -> None:
        batched = make(model, plan)
        batched([batched.new_generation()] * 2, **simple_calls(0, rows=2)[0])

    yield ended, "has ended"
    yield uneven, "3 rows for 2 generations"
    yield twice, "each once"


@pytest.mark.parametrize(("make", "message"), list(_refusals()))
def test_refusals_name_the_way_out(model: nn.Module, plan: Plan, make: Callable[..., Any], message: str):
    with pytest.raises(soda_compile.OptionError, match=message):
        make(model, plan)
