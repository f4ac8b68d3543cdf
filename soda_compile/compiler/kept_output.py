"""The denoiser's output as a region of its own: what stale steps give is mixed with what anchors gave."""

from dataclasses import replace

import torch
from torch import fx

from soda_compile.analysis.outline import canonical_key
from soda_compile.compiler.whole_stack import layout_of
from soda_compile.errors import PlanError
from soda_compile.ir.structure import OUTPUT_KIND, BlockCall, BlockGraph, Cut, Region, Structure
from soda_compile.plans.actions import COMPUTE, STALE, Action
from soda_compile.plans.fitted_weights import OUTPUT
from soda_compile.plans.plan import Plan

NAME = "(output)"


def with_output(structure: Structure, plan: Plan) -> tuple[Structure, Plan]:
    """Return a structure and a plan in which the output is kept, where the plan has weights for it.

    Before::

        (tail): y = proj(h2)                          return y

    After; at a stale step ``y'`` is ``w0 * y + w1 * kept + w2 * kept_1``, at an anchor ``y``, which is kept::

        (tail): y = proj(h2);  (output): y' = y       return y'

    Args:
        structure: The denoiser.
        plan: Its plan.

    Raises:
        PlanError: If the denoiser returns several tensors, or none that it computes.
    """
    depths = {each.step: len(each.values) - 1 for each in plan.weights if each.order == OUTPUT}
    if not depths:
        return structure, plan
    row = tuple(_action(step, plan, depths) for step in range(plan.steps))
    name = _only_output(structure)
    call = _output_call(name, structure)
    made = replace(
        structure,
        calls=(*structure.calls, call),
        outputs=tuple(call.outputs[0] if each == name else each for each in structure.outputs),
    )
    return made, replace(plan, regions=(*plan.regions, NAME), actions=(*plan.actions, row))


def _action(step: int, plan: Plan, depths: dict[int, int]) -> Action:
    """Return what the output does; where nothing was fitted to a stale step it is weighted by one and by zero."""
    return COMPUTE if step in plan.anchors else STALE[depths.get(step, 1) - 1]


def _only_output(structure: Structure) -> str:
    names = [name for name in structure.outputs if name]
    made = {name for call in structure.calls for name in call.outputs}
    if len(names) != 1 or names[0] not in made:
        raise PlanError(
            f"the plan has weights for the output, but this denoiser returns {len(names)} tensors, or none that it "
            "computes; take out the weights for 'output', or fit the plan again"
        )
    return names[0]


def _output_call(name: str, structure: Structure) -> BlockCall:
    value = layout_of(name, structure.calls)
    graph = fx.Graph()
    node = graph.placeholder("value")
    node.meta = {"val": value}
    graph.output((node,))
    region = Region("", OUTPUT_KIND, (Cut.like(node.name, value),), (), (), 0, ())
    module = fx.GraphModule(torch.nn.Module(), graph)
    return BlockCall(NAME, BlockGraph(canonical_key(graph), module, (region,), (), 0), (name,), (f"{name}'",))
