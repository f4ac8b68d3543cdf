"""The pass manager and its observers: order, reasons, dumps, and the switches that leave passes out."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, fx
from tracing import graph_of

from soda_compile.errors import OptionError
from soda_compile.ir.graphs import output_of
from soda_compile.ir.structure import Note
from soda_compile.passes import observers
from soda_compile.passes.base import Pass, PassResult
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.manager import Pipeline
from soda_compile.passes.narrow_linear import NarrowLinear
from soda_compile.passes.observers import Limit, Log, Observer, standard_observers

aten = torch.ops.aten


@dataclass(frozen=True)
class Rename(Pass):
    """Renames the first sum; a second run finds nothing and says so."""

    name: ClassVar[str] = "rename"
    optional: ClassVar[bool] = True
    to: str = "total"

    def apply(self, graph: fx.Graph) -> PassResult:
        for node in graph.find_nodes(op="call_function", target=aten.add.Tensor):
            if node.name != self.to:
                node.name = self.to
                return PassResult(changed=(self.to,))
        return PassResult(skipped=(Note("graph", "no sum has another name"),))


@dataclass(frozen=True)
class Break(Pass):
    """Leaves a graph that uses a value before it is made."""

    name: ClassVar[str] = "break"

    def apply(self, graph: fx.Graph) -> PassResult:
        first = next(iter(graph.nodes))
        first.prepend(next(iter(graph.find_nodes(op="call_function", target=aten.add.Tensor))))
        return PassResult()


@dataclass
class Witness(Observer):
    """Notes what it is told."""

    seen: list[str]

    def before(self, step: Pass, graph: fx.Graph) -> None:
        self.seen.append(f"before {step.name}")

    def after(self, step: Pass, graph: fx.Graph, result: PassResult) -> None:
        self.seen.append(f"after {step.name} {list(result.changed)}")


@pytest.fixture
def graph() -> fx.Graph:
    def function(x: Tensor, y: Tensor) -> Tensor:
        return (x + y) * 2

    return graph_of(function, torch.ones(2), torch.ones(2)).graph


@pytest.fixture(autouse=True)
def from_the_first_pass_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dumps and limits count the passes of the process."""
    monkeypatch.setattr(observers, "_dumped", iter(range(1, 100)))
    monkeypatch.setattr(observers, "_optional", iter(range(1, 100)))


def test_passes_run_in_order_and_their_results_become_one(graph: fx.Graph):
    seen: list[str] = []
    result = Pipeline((Rename(), Rename(), DeadCode()), (Witness(seen),)).run(graph)
    assert result.changed == ("total",)
    assert [str(note) for note in result.skipped] == ["graph: no sum has another name"]
    assert seen == [
        *("before rename", "after rename ['total']"),
        *("before rename", "after rename []"),
        *("before dead_code", "after dead_code []"),
    ]


def test_a_malformed_graph_names_the_pass(graph: fx.Graph):
    with pytest.raises(RuntimeError) as caught:
        Pipeline((Rename(), Break())).run(graph)
    assert caught.value.__notes__ == ["the graph is malformed after the pass break"]


def test_graphs_are_dumped_before_and_after(graph: fx.Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(observers.DUMP, str(tmp_path / "dump"))
    Pipeline((Rename("renamed_sum"), DeadCode())).run(graph)
    files = {path.name: path.read_text() for path in (tmp_path / "dump").iterdir()}
    names = ["001_rename_after.txt", "001_rename_before.txt", "002_dead_code_after.txt", "002_dead_code_before.txt"]
    assert sorted(files) == names
    assert "renamed_sum" not in files["001_rename_before.txt"]
    assert "renamed_sum" in files["001_rename_after.txt"]
    assert files["002_dead_code_before.txt"] == files["001_rename_after.txt"]


def test_an_optional_pass_is_left_out_by_name(graph: fx.Graph, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(observers.SKIP, " rename ")
    result = Pipeline((Rename(), DeadCode())).run(graph)
    assert result.changed == ()
    assert [str(note) for note in result.skipped] == ["rename: left out by SODA_COMPILE_SKIP_PASSES"]


def test_the_first_passes_run_up_to_a_limit(graph: fx.Graph, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(observers.LIMIT, "2")
    for number in range(3):
        result = Pipeline((DeadCode(), Rename(f"sum{number}"))).run(graph)
        assert bool(result.changed) == (number < 2)
    assert str(result.skipped[0]) == "rename: left out by SODA_COMPILE_PASS_LIMIT=2"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (observers.SKIP, "polish", r"names 'polish', which is no pass. Those that can be left out: .*narrow_linear"),
        (observers.SKIP, "insert_reuse", r"names 'insert_reuse', without which results would be wrong"),
        (observers.LIMIT, "some", r"SODA_COMPILE_PASS_LIMIT is 'some', but must be a number"),
    ],
)
def test_a_wrong_switch_is_refused(variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(OptionError, match=message):
        standard_observers()


def test_the_log_counts_operators(graph: fx.Graph, caplog: pytest.LogCaptureFixture):
    product = next(iter(graph.find_nodes(op="call_function", target=aten.mul.Tensor)))
    output_of(graph).args = ((product.args[0],),)
    with caplog.at_level(logging.DEBUG, logger=observers.log.name):
        Pipeline((DeadCode(),), (Log(),)).run(graph)
    assert "dead_code: " in caplog.text
    assert "operators ['aten.mul.Tensor -1']; changed ['mul']; left []" in caplog.text


def test_only_passes_that_graphs_can_do_without_are_optional():
    assert NarrowLinear.optional
    assert not DeadCode.optional
    assert Limit(0).forbids(DeadCode()) == ""


@pytest.mark.parametrize("traced", [False, True])
def test_no_text_is_made_unless_somebody_reads_it(traced: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv(observers.DUMP, raising=False)
    monkeypatch.setenv(observers.TRACE, str(tmp_path) if traced else "")
    assert any(isinstance(observer, observers.Dump) for observer in standard_observers()) == traced
