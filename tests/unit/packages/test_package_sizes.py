"""Packages for a range of sizes: one step program from one capture; subgraphs run in eager mode here."""

from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
import sympy
import torch
from package_tools import Grid, grid_inputs
from torch.export import Dim
from torch.utils._sympy.functions import FloorDiv
from typer.testing import CliRunner

import soda_compile
from soda_compile import OptionError, PackagedDenoiser, PackageError
from soda_compile.cli import app
from soda_compile.packages.conditions import broken, other_values
from soda_compile.packages.loading import open_package
from soda_compile.packages.sizes import AxisSize, size_at, written
from soda_compile.packages.spaces import space_of
from soda_compile.packages.trace import ModelTensors
from soda_compile.plans.pruning import Pruning
from soda_compile.torch_internals.tracing import SizeGuards

pytestmark = pytest.mark.usefixtures("eager_subgraphs")

BATCH = Dim("batch", min=2, max=6)
SHAPES = {"hidden_states": {0: BATCH}, "timestep": [BATCH]}


@pytest.fixture(scope="module")
def package(folder: Path) -> Path:
    """For a batch from 1 on, with every action."""
    batch = Dim("batch", min=1, max=6)
    shapes = {"hidden_states": {0: batch}, "timestep": {0: batch}}
    structure = soda_compile.inspect(toy.Denoiser(), **toy.inputs())
    return toy.export(folder / "batch.soda.pt2", plan=mixed_plan(structure), dynamic_shapes=shapes)


@pytest.fixture
def denoiser(package: Path) -> PackagedDenoiser:
    return soda_compile.load(package)


def mixed_plan(structure: Any) -> soda_compile.Plan:
    settings = {"timesteps": toy.TIMESTEPS, "timestep_input": "timestep", "pruning": Pruning("drift")}
    return toy.structure_plan(["CCr1", "Cprp"], structure, **settings)


def fixed(folder: Path, plan: soda_compile.Plan, example: Any, model: Any = None) -> PackagedDenoiser:
    """A package for the example's sizes only; other tests hold such a package against the JIT."""
    return soda_compile.load(toy.export(folder / "fixed.soda.pt2", model, plan=plan, example=example))


@pytest.mark.parametrize("batch", [1, 2, 6])
def test_any_batch_gives_what_a_package_for_it_gives(denoiser: PackagedDenoiser, folder: Path, batch: int) -> None:
    wanted = toy.generate(fixed(folder, denoiser.plan, toy.inputs(batch=batch)), toy.trajectory(batch=batch))
    assert torch.equal(toy.generate(denoiser, toy.trajectory(batch=batch)), wanted)


def test_sizes_have_slots_of_their_own(denoiser: PackagedDenoiser) -> None:
    some, others = toy.trajectory(batch=3), toy.trajectory(batch=4)
    wanted = toy.generate(denoiser, some), toy.generate(denoiser, others)
    with torch.no_grad(), soda_compile.trajectory(denoiser, manual=True) as clock:
        for step in range(toy.STEPS):
            for calls, expected in zip((some, others), wanted, strict=True):
                assert torch.equal(denoiser(**calls[step]).sample, expected[step])
            clock.advance()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch": 7}, r"hidden_states is float32\[7, 4, 8\], but was float32\[batch, 4, 8\] with batch from 2 to 6"),
        ({"timestep": torch.ones(3)}, r"timestep is float32\[3\], but was float32\[batch\] at batch=2"),
        ({"hidden_states": torch.ones(2, 5, 8)}, r"is float32\[2, 5, 8\], but was float32\[batch, 4, 8\] at batch=2"),
        ({"hidden_states": torch.ones(2, 4)}, r"hidden_states is a tensor float32\[2, 4\], but was float32\[batch, 4"),
    ],
)
def test_other_sizes_are_refused(denoiser: PackagedDenoiser, changes: dict[str, Any], reason: str) -> None:
    with torch.no_grad(), pytest.raises(PackageError, match=reason):
        denoiser(**toy.inputs(**changes))


def test_the_command_line_makes_shows_and_runs_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("target.py").write_text("import package_tools as toy\ndef call():\n    return toy.Denoiser(), toy.inputs()\n")
    toy.PLAN.save("plan.json")

    def succeed(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.output
        return str(done.stdout)

    made = succeed("export", "target.py:call", "--plan", "plan.json", "--out", "cli.soda.pt2", "--batch", "2:6")
    assert made.startswith(succeed("info", "cli.soda.pt2").rstrip())
    for text in ("hidden_states float32[batch, 4, 8]", "for any      batch from 2 to 6", "1.02 kB to 3.07 kB"):
        assert text in made, made
    assert "hidden_states [2, 4, 8]" in succeed("run", "cli.soda.pt2", "--rounds", "1")
    assert "hidden_states [5, 4, 8]" in succeed("run", "cli.soda.pt2", "--rounds", "1", "--size", "batch=5")
    refused = CliRunner().invoke(app, ["run", "cli.soda.pt2", "--size", "batch=7"])
    assert refused.exit_code == 2
    assert "no program of cli.soda.pt2 is for batch=7" in refused.stderr


HALF, COLUMNS = Dim("half", min=2, max=5), Dim("columns", min=3, max=7)


@pytest.mark.thorough
def test_resolution_and_batch_at_once(folder: Path) -> None:
    shapes = {"hidden_states": {0: BATCH, 2: 2 * HALF, 3: COLUMNS}, "timestep": {0: BATCH}}
    path = toy.export(folder / "grid.soda.pt2", Grid(), example=grid_inputs(0, 2, 4, 4), dynamic_shapes=shapes)
    loaded = soda_compile.load(path)
    calls = [grid_inputs(step, 5, 10, 7) for step in range(toy.STEPS)]
    one_size = fixed(folder, toy.PLAN, calls[0], Grid())
    for ours, wanted in zip(toy.outputs(loaded, calls), toy.outputs(one_size, calls), strict=True):
        assert torch.equal(ours, wanted)
    with torch.no_grad(), pytest.raises(PackageError, match=r"2\*half, columns\] with half from 2 to 5"):
        loaded(**grid_inputs(0, 2, 7, 4))


def test_tokens_are_pruned_at_any_number_of_them(folder: Path) -> None:
    """k of N tokens, N = height * columns."""
    model, example = Grid(), grid_inputs(0, 2, 4, 5)
    settings = {"timesteps": toy.TIMESTEPS, "timestep_input": "timestep", "pruning": Pruning("drift")}
    plan = toy.structure_plan(["Cprp", "CCpp"], soda_compile.inspect(model, **example), **settings)
    shapes = {"hidden_states": {2: HALF, 3: COLUMNS}}
    path = toy.export(folder / "prune.soda.pt2", model, example=example, plan=plan, dynamic_shapes=shapes)
    loaded = soda_compile.load(path)
    for sizes in ((2, 3, 5), (2, 5, 7)):
        calls = [grid_inputs(step, *sizes) for step in range(toy.STEPS)]
        one_size = fixed(folder, plan, calls[0], Grid())
        for ours, wanted in zip(toy.outputs(loaded, calls), toy.outputs(one_size, calls), strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.thorough
@pytest.mark.parametrize(("low", "high"), [(3, 12), (7, 8)])
def test_sizes_of_another_graph_have_a_program_of_their_own(
    folder: Path, caplog: pytest.LogCaptureFixture, low: int, high: int
) -> None:
    model = Grid()
    model.most = 8
    shapes = {"hidden_states": {2: Dim("rows", min=low, max=high)}}
    path = toy.export(folder / "parts.soda.pt2", model, example=grid_inputs(0, 2, 8, 5), dynamic_shapes=shapes)
    assert "at rows=8 the model is another graph than at rows=7, since s" in caplog.text
    loaded = soda_compile.load(path)
    first, second = open_package(path).programs
    assert str(first.dims["rows"]) == f"from {low} to 7"
    assert "rows" not in second.dims or str(second.dims["rows"]) == "from 8 to 12"
    for rows in (low, 7, 8, high):
        calls = [grid_inputs(step, 2, rows, 5) for step in range(toy.STEPS)]
        one_size = fixed(folder, toy.PLAN, calls[0], model)
        for ours, wanted in zip(toy.outputs(loaded, calls), toy.outputs(one_size, calls), strict=True):
            assert torch.equal(ours, wanted), rows


class OneSize(Grid):
    """Takes six rows only."""

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> Any:  # type: ignore[override]
        (found,) = super().forward(hidden_states, timestep)
        return (found + torch.ones(6)[:, None],)


def test_sizes_that_the_model_does_not_take_are_named(folder: Path) -> None:
    shapes = {"hidden_states": {2: Dim("rows", min=3, max=8)}}
    with pytest.raises(
        PackageError, match=r"OneSize fails at rows=4; leave such sizes out of dynamic_shapes: (.|\n)*must match"
    ) as raised:
        toy.export(folder / "bad.soda.pt2", OneSize(), example=grid_inputs(0, 2, 6, 5), dynamic_shapes=shapes)
    assert not (folder / "bad.soda.pt2").exists()
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("most", "row", "sizes", "reason"),
    [
        (99, "CCr1", {3: 2}, r"axis 3 of hidden_states is 2; give it a name and a range"),
        (99, "CCr1", {4: COLUMNS}, "hidden_states has no axis 4"),
        (99, "CCr1", {3: Dim("columns", min=2)}, "columns has no upper end"),
        (99, "CCr1", {3: Dim("columns", max=5)}, "columns goes from 0 to 5; begin with 1 or more"),
    ],
)
def test_what_is_not_one_program_is_refused(folder: Path, most: int, row: str, sizes: Any, reason: str) -> None:
    model, call = Grid(), grid_inputs(0, 2, 4, 5)
    model.most = most
    structure = soda_compile.inspect(model, **call)
    settings = {"timesteps": toy.TIMESTEPS, "timestep_input": "timestep", "pruning": Pruning("drift")}
    plan = toy.structure_plan([row] * 2, structure, **settings)
    with pytest.raises((PackageError, OptionError), match=reason):
        toy.export(folder / "bad.soda.pt2", model, example=call, plan=plan, dynamic_shapes={"hidden_states": sizes})
    assert not (folder / "bad.soda.pt2").exists()


def test_code_for_some_sizes_only_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    symbol = sympy.Symbol("s", integer=True)

    def compile_for_few(module: Any, sizes: Any, options: Any, folder: str) -> tuple[list[str], SizeGuards]:
        return [], SizeGuards((symbol < 5,), {"size_0": symbol})

    monkeypatch.setattr("soda_compile.packages.aot.aot_compile", compile_for_few)
    with pytest.raises(PackageError, match="Inductor's code rests on s < 5, which does not hold at batch=5"):
        toy.export(folder / "few.soda.pt2", dynamic_shapes=SHAPES)


def test_a_condition_is_tried_at_both_ends() -> None:
    symbol, other = sympy.Symbol("s", integer=True), sympy.Symbol("unknown", integer=True)
    space = space_of({"x": torch.ones(3)}, {"x": {0: BATCH}})
    guards = SizeGuards((symbol < 4, sympy.Ne(symbol, 3), symbol > 1, sympy.Eq(other, symbol)), {"x": symbol})
    found = broken([(guards, {"x": AxisSize("batch").expression, "unknown": sympy.Integer(3)})], space)
    assert [(str(condition), point["batch"]) for condition, point in found] == [
        *[("s < 4", 4), ("s < 4", 6), ("Ne(s, 3)", 3)],
        *[("Eq(unknown, s)", 2), ("Eq(unknown, s)", 6)],
    ]


def test_values_with_conditions_of_their_own() -> None:
    symbol, other = sympy.Symbol("s", integer=True), sympy.Symbol("o", integer=True)
    space = space_of({"x": torch.ones(3, 3)}, {"x": [BATCH, Dim("rows", min=2, max=9)]})
    guards = SizeGuards((sympy.Ne(symbol, 4), other < 8, symbol < other + 9), {"x": symbol, "y": other})
    sizes = {"x": AxisSize("batch").expression, "y": AxisSize("rows").expression}
    found = other_values([(guards, sizes)], space)
    assert found == {"batch": {4: "Ne(s, 4)"}, "rows": {8: "o < 8", 9: "o < 8"}}
    mine, rest = space.split("batch", found["batch"])
    assert (mine.values("batch"), [part.ranges["batch"] for part in rest]) == ([2, 3, 5, 6], [(4, 4)])
    mine, rest = mine.split("rows", found["rows"])
    assert (mine.ranges, mine.without["batch"]) == ({"batch": (2, 6), "rows": (2, 7)}, {4})
    assert [(part.ranges, part.values("batch")) for part in rest] == [({"batch": (2, 6), "rows": (8, 9)}, [2, 3, 5, 6])]
    mine, rest = space.split("rows", {2, 5, 6, 9})
    assert (mine.values("rows"), [part.ranges["rows"] for part in rest]) == ([3, 4, 7, 8], [(2, 2), (5, 6), (9, 9)])


def test_typical_sizes_differ() -> None:
    few = Dim("few", min=4, max=5)
    space = space_of({"x": torch.ones(3, 3, 3)}, {"x": [BATCH, Dim("rows", min=2, max=6), few]})
    assert space.typical() == {"batch": 4, "rows": 3, "few": 5}


def test_a_tensor_that_changes_with_the_sizes_is_refused() -> None:
    weights = ModelTensors(toy.Denoiser())
    table = torch.ones(3)
    assert weights.name(table, "table") == weights.name(table.clone(), "table") == "table"
    with pytest.raises(PackageError, match="table is another tensor at other sizes"):
        weights.name(torch.ones(4), "table")


def test_names_must_be_those_of_tensors() -> None:
    leaves = {"x": torch.ones(2, 3), "more.bias": torch.ones(2), "flag": True}
    assert space_of(leaves, {"more": {"bias": {0: BATCH}}}).axes == {"more.bias": {0: AxisSize("batch")}}
    assert space_of(leaves, {"x": None}).ranges == {}
    for wrong in ({"y": {0: BATCH}}, {"flag": {0: BATCH}}):
        with pytest.raises(OptionError, match=r"is no tensor of the example inputs, which are x, more\.bias"):
            space_of(leaves, wrong)
    with pytest.raises(OptionError, match="batch has several ranges"):
        space_of(leaves, {"x": {0: BATCH, 1: Dim("batch", min=2, max=3)}})


def test_sizes_are_written_and_read() -> None:
    a, b = (sympy.Symbol(name, integer=True, positive=True) for name in "ab")
    for size, text in ((4 * a * b - b + 3, "4*a*b - b + 3"), (FloorDiv(a, 2) * b**2, "b**2*((a//2))"), (2 * a, "2*a")):
        assert written(size, {}) == text
        assert size_at(text, {"a": 11, "b": 3}) == int(size.subs({a: 11, b: 3}).doit())
    assert written(sympy.Symbol("s3"), {"s3": 2 * a}) == "2*a"
    assert written(7, {}) == size_at(7, {}) == 7
    assert (AxisSize("a", 2, 1).at({"a": 4}), str(AxisSize("a", 2, 1).expression)) == (9, "2*a + 1")
    with pytest.raises(PackageError, match="sums, products and whole quotients"):
        written(sympy.Max(a, b), {})
