"""Plans that prune tokens, on seven families: equal to hooks that mix tokens, and to the full branch at the index."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from eager_reference import EagerReference
from families import FAMILIES
from random_plans import random_plan
from test_families import ROUNDING, STEPS, compiled_with, generate, generate_again, subject
from thorough import gated
from tracing import graphs_as_they_are

from soda_compile.compiler.bind import prunable_regions
from soda_compile.plans.actions import COMPUTE, REUSE, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning


def whole_cuts(name: str) -> list[bool]:
    """For each region whether its cuts are whole module outputs; hooks cannot mix a part of one."""
    model, inputs, structure = subject(name)
    tokens: dict[str, int] = {}
    paths = {path for region in FAMILIES[name].regions.values() for path in region.cuts}
    with ExitStack() as hooks:
        for path in paths:
            note = lambda module, args, output, path=path: tokens.update({path: output.shape[1]})  # noqa: E731
            hooks.enter_context(model.get_submodule(path).register_forward_hook(note))
        generate(model, inputs[:1])
    return [
        sorted(tokens[path] for path in FAMILIES[name].regions[full].cuts)
        == sorted(cut.shape[1] for cut in region.cuts)
        for full, region in zip(structure.region_names, structure.regions, strict=True)
    ]


def pruned_plan(name: str, seed: int = 0) -> Plan:
    """A random plan with every action, whose regions without a token axis reuse instead of pruning."""
    structure = subject(name)[2]
    rng = np.random.default_rng(seed)
    mixed = random_plan(rng, structure.region_names, STEPS, compute=0.3, pruning=Pruning("random"), rates=(0.25, 0.5))
    plain = random_plan(rng, structure.region_names, STEPS, compute=0.3)
    prunable = [can and whole for can, whole in zip(prunable_regions(structure), whole_cuts(name), strict=True)]
    rows = zip(mixed.actions, plain.actions, prunable, strict=True)
    return Plan("", mixed.regions, tuple(a if can else b for a, b, can in rows), pruning=mixed.pruning)


@pytest.fixture
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the rewritten graphs as they are."""
    graphs_as_they_are(monkeypatch)


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize(("share", "pickers"), [("block", {1: 0, 3: 2, 5: 4}), (2, {1: 0, 2: 0, 3: 0, 5: 4})])
def test_a_choice_is_shared(share: str | int, pickers: dict[int, int]) -> None:
    model, inputs, structure = subject("dit")
    row = (COMPUTE, prune(0.5), prune(0.25), COMPUTE, prune(0.5))
    pruning = Pruning("random", share=share)  # type: ignore[arg-type]
    plan = Plan("", structure.region_names, (row,) * 6, pruning=pruning)
    shared = generate(compiled_with(plan, model), inputs)
    torch.testing.assert_close(
        shared, EagerReference(model, FAMILIES["dit"].regions, plan, pickers).run(inputs), **ROUNDING
    )


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize("score", ["feature_mean", "drift"])
def test_generations_are_independent(score: str) -> None:
    """What is tracked of tokens starts afresh with every generation."""
    model, inputs, structure = subject("dit")
    row = (COMPUTE, prune(0.5), prune(0.25), REUSE, prune(0.5))
    plan = Plan("", structure.region_names, (row,) * 6, pruning=Pruning(score, staleness=0.1))  # type: ignore[arg-type]
    denoiser = compiled_with(plan, model)
    first = generate(denoiser, inputs)
    generate(denoiser, [{**call, "hidden_states": call["hidden_states"] * 2} for call in inputs])
    torch.testing.assert_close(generate_again(denoiser, inputs), first, rtol=0, atol=0)
    exact = generate(model, inputs)
    assert max((a[0] - b[0]).abs().max().item() for a, b in zip(first, exact, strict=True)) > 1e-4


@pytest.mark.usefixtures("without_inductor")
def test_what_cannot_be_pruned_is_refused() -> None:
    model, inputs, structure = subject("dit")
    row = (COMPUTE, prune(0.5), COMPUTE, COMPUTE, COMPUTE)
    plan = Plan("", structure.region_names, (row,) * 6, pruning=Pruning(groups=3))
    with pytest.raises(Exception, match="a batch of 2 does not fall into 3 equal groups"):
        generate(compiled_with(plan, model), inputs)


def does_what_hooks_do(name: str, plan: Plan) -> None:
    model, inputs, _ = subject(name)
    assert sum(action.kind == "prune" for row in plan.actions for action in row) > STEPS
    denoiser = compiled_with(plan, model)
    first = generate(denoiser, inputs)
    torch.testing.assert_close(first, EagerReference(model, FAMILIES[name].regions, plan).run(inputs), **ROUNDING)
    torch.testing.assert_close(generate_again(denoiser, inputs), first, rtol=0, atol=0)


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize("name", gated("dit", "sd3", others=FAMILIES))
def test_a_pruned_plan_does_what_hooks_do(name: str) -> None:
    does_what_hooks_do(name, pruned_plan(name))


@pytest.mark.thorough
def test_a_pruned_plan_as_compiled_by_inductor() -> None:
    """With the same row for all regions, which asks for few different graphs."""
    row = (COMPUTE, prune(0.5), REUSE, COMPUTE, prune(0.25))
    does_what_hooks_do("dit", Plan("", subject("dit")[2].region_names, (row,) * 6, pruning=Pruning("random")))
