"""Whole steps as one graph, against blocks that share code."""

from typing import Any

import pytest
import torch
from families import FAMILIES, structure_of
from random_plans import random_plan
from thorough import gated
from torch.utils._pytree import tree_leaves

import soda_compile
from soda_compile.backend.options import check_options
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program


@pytest.mark.parametrize("name", gated("dit", others=["wan"]))
def test_whole_steps_give_what_blocks_give(name: str):
    family = FAMILIES[name]
    model, calls = family.build(), list(family.trajectory(6))
    structure = structure_of(name)
    plan = random_plan(1, structure.region_names, 6)
    steps = build_program(structure, plan, Lowering(target="eager"), "step").steps
    assert [len(step) for step in steps] == [1] * 6

    def run(granularity: str) -> list[Any]:
        torch._dynamo.reset()
        options = {"plan": plan, "granularity": granularity, "lowering": "eager"}
        compiled = torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=False)
        with torch.no_grad(), soda_compile.trajectory(model):
            return [leaf for inputs in calls for leaf in tree_leaves(compiled(**inputs))]

    for ours, theirs in zip(run("step"), run("block"), strict=True):
        assert torch.equal(ours, theirs)


def test_an_unknown_granularity_is_refused():
    with pytest.raises(soda_compile.OptionError, match=r"'granularity' is 'layer', but must be one of 'block', 'step'"):
        check_options({"granularity": "layer"})
