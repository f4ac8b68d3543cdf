"""Plans that prune tokens, on seven families: equal to hooks that mix tokens, and to the full branch at the index."""

import numpy as np
import pytest
import torch
from eager_reference import EagerReference
from families import FAMILIES
from test_families import ROUNDING, STEPS, compiled_with, generate, generate_again, subject

import soda_compile.lowering
from soda_compile.plans import Plan, random_plan
from soda_compile.program import prunable_regions
from soda_compile.pruning import Pruning

COMPILED = ("dit",)  # by Inductor; the others run their graphs as they are


def pruned_plan(name: str, seed: int = 0) -> Plan:
    """A random plan with every action, whose regions without a token axis reuse instead of pruning."""
    structure = subject(name)[2]
    rng = np.random.default_rng(seed)
    mixed = random_plan(rng, structure.region_names, STEPS, compute=0.3, pruning=Pruning("random"), rates=(0.25, 0.5))
    plain = random_plan(rng, structure.region_names, STEPS, compute=0.3)
    prunable = prunable_regions(structure)
    rows = zip(mixed.actions, plain.actions, prunable, strict=True)
    return Plan("", mixed.regions, tuple(a if can else b for a, b, can in rows), pruning=mixed.pruning)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_plan_does_what_hooks_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, _ = subject(name)
    plan = pruned_plan(name)
    assert sum(action.kind == "prune" for row in plan.actions for action in row) > STEPS
    if name not in COMPILED:
        monkeypatch.setattr(soda_compile.lowering, "inductor_compile", lambda module, options: module)
    denoiser = compiled_with(plan, model)
    first = generate(denoiser, inputs)
    torch.testing.assert_close(first, EagerReference(model, FAMILIES[name].regions, plan).run(inputs), **ROUNDING)
    torch.testing.assert_close(generate_again(denoiser, inputs), first, rtol=0, atol=0)
