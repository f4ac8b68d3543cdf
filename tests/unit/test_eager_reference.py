"""The seven families and the eager reference that the compiler is checked against."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from eager_reference import EagerReference, extrapolate
from families import FAMILIES, Family, Region
from torch import Tensor, nn

from soda_compile.plans.actions import ACTIONS
from soda_compile.plans.plan import Plan, compute_all_plan

STEPS = 6
TOY_REGIONS = {"mlp": Region(("fc2",))}
family_cases = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


class ToyResidual(nn.Module):
    """h + gate * fc2(fc1(h)): the gate is an input, so it stays fresh when the cut (fc2) is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 4, bias=False)
        self.fc2 = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.arange(8.0).reshape(4, 2) - 3)
            self.fc2.weight.copy_(torch.arange(8.0).reshape(2, 4) - 2)

    def forward(self, h: Tensor, gate: float = 1.0) -> Tensor:
        return h + gate * self.feature(h)

    def feature(self, h: Tensor) -> Tensor:
        return self.fc2(self.fc1(h))


def make_plan(rows: dict[str, str]) -> Plan:
    """A plan from one string of action symbols (C, r, 1, 2) per region."""
    by_symbol = {action.symbol: action for action in ACTIONS}
    return Plan("", tuple(rows), tuple(tuple(by_symbol[symbol] for symbol in row) for row in rows.values()))


def run_toy(row: str, points: Iterable[Tensor], **extra: Any) -> list[Tensor]:
    """The outputs of the toy model under a plan with one action symbol per point."""
    reference = EagerReference(ToyResidual(), TOY_REGIONS, make_plan({"mlp": row}))
    return [output for (output,) in reference.run([{"h": h, **extra} for h in points])]


def run_plain(model: nn.Module, trajectory: list[dict[str, Any]]) -> list[Tensor]:
    with torch.no_grad():
        return [model(**inputs)[0] for inputs in trajectory]


@contextmanager
def frozen(model: nn.Module, regions: Iterable[Region]) -> Iterator[None]:
    """Cuts the gradient at the regions' cuts: what lies behind them looks constant from the output."""
    with ExitStack() as hooks:
        for path in (path for region in regions for path in region.cuts):
            hook = model.get_submodule(path).register_forward_hook(lambda module, args, output: output.detach())
            hooks.enter_context(hook)
        yield


def reached_parameters(model: nn.Module, inputs: dict[str, Any]) -> set[str]:
    """Names of the parameters that the output depends on."""
    model.zero_grad(set_to_none=True)
    model(**inputs)[0].sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@family_cases
def test_models_are_reproducible_and_nowhere_zero(family: Family) -> None:
    first, second = family.build(), family.build()
    assert not first.training
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b), name
        assert a.any(), name
    (output,) = run_plain(first, family.trajectory(1))
    assert output.isfinite().all()
    assert output.std() > 0.1


@family_cases
def test_inputs_drift_slowly_under_constant_conditioning(family: Family) -> None:
    trajectory = family.trajectory(STEPS)
    for before, after in pairwise(trajectory):
        change = (after["hidden_states"] - before["hidden_states"]).norm() / before["hidden_states"].norm()
        assert 0.02 < change < 0.3
        assert (after["timestep"] < before["timestep"]).all()
        constant = [
            {k: v for k, v in call.items() if k not in ("hidden_states", "timestep")} for call in (before, after)
        ]
        for (name, old), new in zip(constant[0].items(), constant[1].values(), strict=True):
            assert torch.equal(old, new) if isinstance(old, Tensor) else old == new, name
    outputs = run_plain(family.build(), trajectory)
    for before, after in pairwise(outputs):
        assert 0.02 < (after - before).norm() / before.norm() < 0.5


@pytest.mark.parametrize("step", [-1, STEPS])
def test_inputs_refuse_a_step_outside_the_trajectory(step: int) -> None:
    with pytest.raises(ValueError, match=f"got {step}"):
        FAMILIES["dit"].inputs(step, STEPS)


@family_cases
@pytest.mark.parametrize("batch", [1, 3])
def test_every_cut_is_a_linear_that_fires_once(family: Family, batch: int) -> None:
    model, fired = family.build(), Counter[str]()
    cuts = [path for region in family.regions.values() for path in region.cuts]
    for path in cuts:
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear), path
        module.register_forward_hook(lambda module, args, output, path=path: fired.update([path]))
    (output,) = run_plain(model, family.trajectory(1, batch))
    assert output.shape[0] == batch
    assert fired == Counter(cuts)
    assert len(cuts) == len(set(cuts))


@family_cases
def test_cuts_separate_each_region_and_nothing_else(family: Family) -> None:
    model, inputs = family.build(), family.inputs(0, STEPS)
    everything = reached_parameters(model, inputs)
    for name, region in family.regions.items():
        # Norms of a block feed its gates too, which stay fresh; all other weights of the region lie behind the cut.
        inside = {p for p in everything if p.startswith(f"{name}.") and not p.startswith(f"{name}.norm.")}
        assert {f"{cut}.weight" for cut in region.cuts} <= inside
        with frozen(model, [region]):
            reached = reached_parameters(model, inputs)
        assert not reached & inside, name
        others = [cut for other in family.regions.values() if other != region for cut in other.cuts]
        assert {f"{cut}.weight" for cut in others} & reached, name


@family_cases
def test_regions_hold_all_work_of_the_blocks_but_the_modulation(family: Family) -> None:
    model = family.build()
    lists = tuple(f"{name}." for name, child in model.named_children() if isinstance(child, nn.ModuleList))
    with frozen(model, family.regions.values()):
        reached = reached_parameters(model, family.inputs(0, STEPS))
    left = [name for name in reached if name.startswith(lists)]
    assert all("norm" in name or "scale_shift_table" in name for name in left), left


@family_cases
def test_compute_everything_equals_the_plain_model(family: Family) -> None:
    model, trajectory = family.build(), family.trajectory(3)
    reference = EagerReference(model, family.regions, compute_all_plan(tuple(family.regions), 3))
    for (output,), plain in zip(reference.run(trajectory), run_plain(model, trajectory), strict=True):
        assert torch.equal(output, plain)


@family_cases
def test_reusing_any_region_changes_the_output(family: Family) -> None:
    model, trajectory = family.build(), family.trajectory(STEPS)[:2]
    plain = run_plain(model, trajectory)
    for name in family.regions:
        (first,), (second,) = EagerReference(model, family.regions, make_plan({name: "Cr"})).run(trajectory)
        assert torch.equal(first, plain[0])
        assert (second - plain[1]).norm() > 5e-4 * plain[1].norm(), name


@family_cases
def test_dynamo_captures_one_graph_for_all_steps(family: Family) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model, trajectory = family.build(), family.trajectory(3)
    compiled = torch.compile(model, backend=count, fullgraph=True)
    for output, plain in zip(run_plain(compiled, trajectory), run_plain(model, trajectory), strict=True):
        torch.testing.assert_close(output, plain)
    assert len(graphs) == 1


def test_reuse_keeps_the_latest_computed_feature_and_a_fresh_gate() -> None:
    model, points = ToyResidual(), [torch.randn(3, 2) for _ in range(4)]
    inputs = [{"h": h, "gate": gate} for h, gate in zip(points, [1.0, 2.0, 3.0, 4.0], strict=True)]
    outputs = EagerReference(model, TOY_REGIONS, make_plan({"mlp": "CrCr"})).run(inputs)
    kept = [model.feature(points[source]) for source in (0, 0, 2, 2)]
    for (output,), call, feature in zip(outputs, inputs, kept, strict=True):
        assert torch.equal(output, call["h"] + call["gate"] * feature)
    assert not torch.equal(outputs[1][0], model(**inputs[1]))


def test_first_order_forecast_of_a_linear_feature_is_exact() -> None:
    points = [torch.tensor([[1.0, 2.0]]) + step * torch.tensor([[3.0, -1.0]]) for step in range(6)]
    for output, h in zip(run_toy("CCC1r1", points)[:4], points, strict=False):
        assert torch.equal(output, ToyResidual()(h))
    assert torch.equal(run_toy("CrrC11", points)[5], ToyResidual()(points[5]))  # the computed steps are 3 apart


def test_second_order_forecast_of_a_quadratic_feature_is_exact_at_uneven_steps() -> None:
    points = [torch.tensor([[1.0, 2.0]]) - step * step * torch.tensor([[3.0, -1.0]]) for step in range(6)]
    outputs = run_toy("CrCC12", points)
    assert torch.equal(outputs[5], ToyResidual()(points[5]))
    assert not torch.equal(outputs[4], ToyResidual()(points[4]))  # a line misses a parabola


def test_forecast_uses_only_the_last_points() -> None:
    line = [step * torch.tensor([[3.0, -1.0]]) for step in range(5)]
    points = [torch.tensor([[100.0, -50.0]]), *line[1:]]  # step 0 lies off the line
    assert torch.equal(run_toy("CCC11", points)[4], ToyResidual()(points[4]))
    assert not torch.equal(run_toy("CCC22", points)[4], ToyResidual()(points[4]))


def test_forecast_is_computed_in_float32_and_cast_once() -> None:
    points = [torch.randn(64, 2).bfloat16() for _ in range(6)]
    model = ToyResidual().bfloat16()
    reference = EagerReference(model, TOY_REGIONS, make_plan({"mlp": "CCrrC2"}))
    (output,) = reference.run([{"h": h} for h in points])[5]
    early, middle, late = (model.feature(points[step]).float() for step in (0, 1, 4))
    # Lagrange's weights of the points 0, 1, 4 at 5: (4 * 1) / (1 * 4), (5 * 1) / (-1 * 3), (5 * 4) / (4 * 3).
    feature = early - 5 / 3 * middle + 5 / 3 * late
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, points[5] + feature.bfloat16(), rtol=1e-6, atol=0)


def test_extrapolation_agrees_with_solving_for_the_polynomial() -> None:
    steps, at = [1, 4, 6], 9
    values = torch.randn(3, 5, dtype=torch.float64)
    powers = torch.vander(torch.tensor(steps, dtype=torch.float64), increasing=True)
    expected = torch.tensor([1.0, at, at * at], dtype=torch.float64) @ torch.linalg.solve(powers, values)
    result = extrapolate(list(zip(steps, values, strict=True)), at)
    torch.testing.assert_close(result, expected.float(), rtol=1e-4, atol=1e-4)


def test_branches_take_turns_on_one_model() -> None:
    family = FAMILIES["sd3"]
    model, plan = family.build(), make_plan(dict.fromkeys(family.regions, "CCr1"))
    branches = [family.trajectory(4), [{**x, "hidden_states": -x["hidden_states"]} for x in family.trajectory(4)]]
    apart = [EagerReference(model, family.regions, plan).run(branch) for branch in branches]
    references = [EagerReference(model, family.regions, plan) for _ in branches]
    for step in range(4):
        for index, reference in enumerate(references):
            with reference.step(step), torch.no_grad():
                assert torch.equal(model(**branches[index][step])[0], apart[index][step][0])


def test_a_second_trajectory_starts_clean() -> None:
    reference = EagerReference(ToyResidual(), TOY_REGIONS, make_plan({"mlp": "CC1"}))
    inputs = [{"h": torch.randn(3, 2)} for _ in range(3)]
    first, second = reference.run(inputs), reference.run(inputs)
    assert all(torch.equal(a, b) for (a,), (b,) in zip(first, second, strict=True))


def test_hooks_are_removed_after_a_run_and_after_an_error() -> None:
    model = ToyResidual()
    reference = EagerReference(model, TOY_REGIONS, make_plan({"mlp": "Cr"}))
    reference.run([{"h": torch.ones(1, 2)}] * 2)
    assert not model.fc2._forward_hooks
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        reference.run([{"h": torch.ones(1, 3)}] * 2)
    assert not model.fc2._forward_hooks


def test_misuse_is_named() -> None:
    model, plan = ToyResidual(), make_plan({"mlp": "Cr"})
    with pytest.raises(ValueError, match="attn"):
        EagerReference(model, TOY_REGIONS, make_plan({"attn": "Cr"}))
    with pytest.raises(ValueError, match="2 steps, got inputs for 1"):
        EagerReference(model, TOY_REGIONS, plan).run([{"h": torch.ones(1, 2)}])
    with pytest.raises(RuntimeError, match="expected one run"), EagerReference(model, TOY_REGIONS, plan).step(0):
        pass
    with pytest.raises(ValueError, match="needs 1 computed steps"), EagerReference(model, TOY_REGIONS, plan).step(1):
        model(torch.ones(1, 2))
