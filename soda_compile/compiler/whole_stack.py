"""One slot for a whole stack of blocks: what all of them together add to the residual stream."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx

from soda_compile.analysis.outline import canonical_key
from soda_compile.errors import PlanError
from soda_compile.ir.aten_operators import graph_flops
from soda_compile.ir.graphs import add_call, copy_graph, find_node, output_of, results_of
from soda_compile.ir.structure import STACK, BlockCall, BlockGraph, Cut, Region, Structure
from soda_compile.passes.dead_code import DeadCode
from soda_compile.plans.actions import COMPUTE
from soda_compile.plans.plan import Plan
from soda_compile.torch_internals.tracing import fake_mode_of

aten = torch.ops.aten
NAME = "(stack)"
MOST_WORK = 0.05
"""Largest share of the work that may lie between the blocks, where each stale step would do it."""


def with_stack(structure: Structure, plan: Plan) -> tuple[Structure, Plan]:
    """Return a structure and a plan in which what the whole stack adds is kept by a region, where the plan keeps that.

    It becomes a region of its own, and all others only ever compute:
    at stale steps nothing reads them, so they are dead.

    Before::

        (head): h0 = embed(x);  blocks.0: h1 = h0 + f(h0);  blocks.1: h2 = h1 + g(h1);  (tail): y = proj(h2)

    After; ``h2~`` is what the blocks give without their regions, here ``h0`` itself::

        (head): h0 = embed(x);  blocks.0: h1 = h0 + f(h0);  blocks.1: h2 = h1 + g(h1);
        (stack): h2' = h0 + (h2 - h0);  (tail): y = proj(h2')

    Args:
        structure: The denoiser.
        plan: Its plan.

    Raises:
        PlanError: If the blocks do much work outside of their regions, or regions add to nothing that is read later.
    """
    if plan.slots == "region" or len(plan.anchors) == plan.steps:
        return structure, plan
    made = whole_stack(structure)
    computed = ((COMPUTE,) * plan.steps,) * len(plan.regions)
    regions = (*structure.region_names, NAME)
    rows = replace(plan, slots="region", regions=regions, actions=(*computed, plan.actions[0]), watched=None)
    return made, rows


def whole_stack(structure: Structure) -> Structure:
    """Return a structure with one more region, after all others, that has what they add together.

    Raises:
        PlanError: As for ``with_stack``.
    """
    places = [index for index, call in enumerate(structure.calls) if call.block.regions]
    first, end = places[0], places[-1] + 1
    stack, tail = structure.calls[first:end], structure.calls[end:]
    made = {name for call in stack for name in call.outputs}
    ends = [*(name for call in tail for name in call.inputs), *filter(None, structure.outputs)]
    read = dict.fromkeys(name for name in ends if name in made)
    differing = _differing(stack)
    kept = [name for name in read if name in differing]
    if not kept:
        raise PlanError('slots="stack" keeps what all blocks add, but nothing that is read after them depends on it')
    names, without = _without_regions(stack, read)
    if (work := sum(call.block.flops for call in without)) > MOST_WORK * structure.flops:
        raise PlanError(
            f'slots="stack" keeps what all blocks add, but {work / structure.flops:.0%} of this model\'s work lies '
            'between their regions and would be done at every step; take slots="region"'
        )
    whole = _stack_call(kept, names, [*stack, *without, *structure.calls], sum(call.block.flops for call in stack))
    renamed = {**{name: names[name] for name in read}, **dict(zip(kept, whole.outputs, strict=True))}
    later = (replace(call, inputs=tuple(renamed.get(name, name) for name in call.inputs)) for call in tail)
    return replace(
        structure,
        calls=(*structure.calls[:end], *without, whole, *later),
        outputs=tuple(name and renamed.get(name, name) for name in structure.outputs),
    )


def stack_region(structure: Structure) -> Region | None:
    """Return the region of what all regions add together; None where that cannot be kept."""
    try:
        return whole_stack(structure).regions[-1]
    except PlanError:
        return None


def stack_bytes(structure: Structure) -> int | None:
    """Return the size of one kept copy of what all regions add together; None where that cannot be kept."""
    region = stack_region(structure)
    return region.memory_bytes if region is not None else None


def _differing(stack: Sequence[BlockCall]) -> set[str]:
    """Return the names of the values that regions have a part in."""
    found: set[str] = set()
    for call in stack:
        graph, regions = call.block.module.graph, call.block.regions
        sources = {cut.node for region in regions for cut in region.cuts}
        sources |= {branch for region in regions for branch in region.branches}
        inputs = dict(zip(graph.find_nodes(op="placeholder"), call.inputs, strict=True))
        touched: set[fx.Node] = set()
        for node in graph.nodes:
            if inputs.get(node) in found or node.name in sources or touched.intersection(node.all_input_nodes):
                touched.add(node)
        found |= {name for name, node in zip(call.outputs, results_of(graph), strict=True) if node in touched}
    return found


def _without_regions(stack: Sequence[BlockCall], read: Mapping[str, None]) -> tuple[dict[str, str], list[BlockCall]]:
    """Return calls that do what the blocks do without their regions, and how they name the values of the stack.

    A value that is an input of the block, as of a residual stream whose branches are gone, has the input's name.
    """
    names: dict[str, str] = {}
    graphs: dict[str, fx.Graph] = {}
    for call in stack:
        if call.block.key not in graphs:
            graphs[call.block.key] = _bare(call.block)
        graph = graphs[call.block.key]
        inputs: dict[fx.Node, str] = dict(zip(graph.find_nodes(op="placeholder"), call.inputs, strict=True))
        for name, node in zip(call.outputs, results_of(graph), strict=True):
            names[name] = names.get(inputs[node], inputs[node]) if node in inputs else f"{name}~"
    needed, calls = {names[name] for name in read}, []
    for call in reversed(stack):
        wanted = tuple(names[name] == f"{name}~" and names[name] in needed for name in call.outputs)
        if any(wanted):
            calls.append(_bare_call(call, graphs[call.block.key], wanted, names))
            needed.update(calls[-1].inputs)
    return names, calls[::-1]


def _bare(block: BlockGraph) -> fx.Graph:
    """Return a block's graph in which nothing is added to its residual streams."""
    graph = copy_graph(block.module.graph)
    pairs = [pair for region in block.regions for pair in zip(region.branches, region.carries, strict=True)]
    for branch, carry in reversed(pairs):  # what later ones are added to is a sum with earlier ones
        _take_away(graph, find_node(graph, branch), find_node(graph, carry))
    return graph


def _take_away(graph: fx.Graph, branch: fx.Node, carry: fx.Node) -> None:
    """Let sums with a branch be what it is added to; for all else that reads it, it is zero."""
    for user in list(branch.users):
        is_sum = user.target is aten.add.Tensor and user.args in ((branch, carry), (carry, branch)) and not user.kwargs
        if is_sum and _kind(user) == _kind(carry):
            user.replace_all_uses_with(carry)
            graph.erase_node(user)
    if branch.users:
        # What it is added to gives the layout where it can, as that needs none of the region's work.
        with graph.inserting_after(branch):
            zero = add_call(graph, aten.zeros_like.default, carry if _kind(branch) == _kind(carry) else branch)
        branch.replace_all_uses_with(zero, delete_user_cb=lambda user: user is not zero)


def _kind(node: fx.Node) -> tuple[torch.Size, torch.dtype]:
    value: torch.Tensor = node.meta["val"]
    return value.shape, value.dtype


def _bare_call(call: BlockCall, graph: fx.Graph, wanted: Sequence[bool], names: Mapping[str, str]) -> BlockCall:
    """Return the call that gives some of the values."""
    graph = copy_graph(graph)
    output = output_of(graph)
    output.args = (tuple(node for node, keep in zip(results_of(graph), wanted, strict=True) if keep),)
    taken = dict(zip(graph.find_nodes(op="placeholder"), call.inputs, strict=True))
    DeadCode().apply(graph)
    inputs = tuple(names.get(taken[node], taken[node]) for node in graph.find_nodes(op="placeholder"))
    module = fx.GraphModule(torch.nn.Module(), graph)
    block = BlockGraph(canonical_key(graph), module, (), (), graph_flops(graph))
    outputs = tuple(f"{name}~" for name, keep in zip(call.outputs, wanted, strict=True) if keep)
    return BlockCall(f"{call.name} without regions", block, inputs, outputs)


def layout_of(name: str, calls: Sequence[BlockCall]) -> torch.Tensor:
    """Return the fake tensor of a value that calls take or give."""
    for call in calls:
        graph = call.block.module.graph
        nodes = (*graph.find_nodes(op="placeholder"), *results_of(graph))
        for end, node in zip((*call.inputs, *call.outputs), nodes, strict=True):
            if end == name:
                found: torch.Tensor = node.meta["val"]
                return found
    raise LookupError(f"no call takes or gives {name}")


def _stack_call(kept: Sequence[str], names: Mapping[str, str], calls: Sequence[BlockCall], flops: int) -> BlockCall:
    """Return the call in which what the blocks add is a region's cut."""
    graph, inputs = fx.Graph(), list[str]()
    for name in kept:
        for source in (name, names[name]):
            inputs.append(source)
            graph.placeholder(f"value_{len(inputs)}").meta = {"val": layout_of(source, calls)}
    ends = graph.find_nodes(op="placeholder")
    cuts, carries, totals = [], [], []
    for after, without in zip(ends[::2], ends[1::2], strict=True):
        layout = without.meta["val"]
        with fake_mode_of((after.meta["val"],)):  # each block may have been traced in a mode of its own
            same = torch.empty_strided(layout.shape, layout.stride(), dtype=layout.dtype, device=layout.device)
        without.meta = {"val": same}
        added = add_call(graph, aten.sub.Tensor, after, without)
        totals.append(add_call(graph, aten.add.Tensor, without, added))
        cuts.append(Cut.like(added.name, added.meta["val"]))
        carries.append(without.name)
    graph.output(tuple(totals))
    branches = tuple(cut.node for cut in cuts)
    region = Region("", STACK, tuple(cuts), branches, tuple(carries), flops, ())
    module = fx.GraphModule(torch.nn.Module(), graph)
    block = BlockGraph(canonical_key(graph), module, (region,), (), 0)
    return BlockCall(NAME, block, tuple(inputs), tuple(f"{name}'" for name in kept))
