"""One compiled subgraph for each block structure and tuple of modes, at whatever block and step they come up."""

from collections.abc import Iterator
from typing import Any

import pytest
from families import structure_of
from random_plans import random_plan
from thorough import gated

from soda_compile.compiler import steps
from soda_compile.compiler.bind import prunable_regions
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import Program, build_program
from soda_compile.compiler.steps import LONGEST_JOIN
from soda_compile.ir.structure import Structure
from soda_compile.plans.actions import COMPUTE, REUSE, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning

Key = tuple[str, Any, tuple[bool, ...]]
"""What makes a variant: block structure, modes, needed outputs."""


class Log:
    """Notes what is rewritten and joined."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.variants: list[Key] = []
        self.subgraphs: list[tuple[Key, ...]] = []
        keys: dict[int, Key] = {}
        make_variant, join = steps.make_variant, steps.join

        def logged_variant(block: Any, modes: Any, needed: Any) -> Any:
            variant = make_variant(block, modes, needed)
            self.variants.append((block.key, tuple(modes), tuple(needed)))
            keys[id(variant)] = self.variants[-1]
            return variant

        def logged_join(calls: Any, needed: Any) -> Any:
            self.subgraphs.append(tuple(keys[id(variant)] for _, _, variant in calls))
            return join(calls, needed)

        monkeypatch.setattr(steps, "make_variant", logged_variant)
        monkeypatch.setattr(steps, "join", logged_join)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def build(structure: Structure, rows: Any, pruning: Pruning) -> tuple[Program, int]:
    """The program, and the number of graphs that were lowered for it."""
    lowering = Lowering(target="eager")
    program = build_program(structure, Plan("", structure.region_names, tuple(rows), pruning=pruning), lowering)
    return program, len(lowering.compiled)


def functions(program: Program) -> Iterator[list[int]]:
    """For each step its compiled functions, by identity."""
    return ([id(call.function) for call in step] for step in program.steps)


@pytest.mark.parametrize("score", ["drift", "feature_mean", "random"])
def test_equal_blocks_share_a_pruned_variant_at_all_steps(log: Log, score: Any):
    structure = structure_of("dit")
    half = prune(0.5)
    row = (COMPUTE, half, half, REUSE, COMPUTE, half, half, REUSE)
    program, lowered = build(structure, [row] * 6, Pruning(score))
    head, *blocks, tail = zip(*(found for found in functions(program) if len(found) == 5), strict=True)
    assert len(set(head)) == len(set(tail)) == 1
    assert blocks[0] == blocks[1] == blocks[2], "the three blocks are equal"
    computed, first, second = blocks[0][:3]
    assert blocks[0] == (computed, first, second) * 2, "the same modes at other steps"
    # Drift keeps the inputs that a later prune is scored against, so that the last before an anchor differs.
    assert len({computed, first, second}) == (3 if score == "drift" else 2)
    # beside them head, tail, and the whole step of reuses
    assert lowered == len(set(blocks[0])) + 3


@pytest.mark.parametrize(("name", "share"), gated(("dit", "region"), ("dit", "block"), others=[("flux", "region")]))
def test_as_many_subgraphs_are_compiled_as_there_are_different_treatments(log: Log, name: str, share: Any):
    """Scored by drift, modes that differ make graphs that differ."""
    structure = structure_of(name)
    pruning = Pruning("drift", share=share)
    names, prunable = structure.region_names, prunable_regions(structure)
    rows = random_plan(0, names, 8, pruning=pruning, compute=0.2).actions
    rows = [row if can else (COMPUTE,) * 8 for row, can in zip(rows, prunable, strict=True)]
    _, lowered = build(structure, rows, pruning)
    assert any(any(mode.action.kind == "prune" for mode in key[1]) for key in log.variants)
    assert len(log.variants) == len(set(log.variants)), "a variant was made twice"
    assert lowered == len(set(log.subgraphs))
    for subgraph in log.subgraphs:
        heavy = [key for key in subgraph if any(mode.works for mode in key[1])]
        assert len(subgraph) == 1 or (not heavy and len(subgraph) <= LONGEST_JOIN + 2)
