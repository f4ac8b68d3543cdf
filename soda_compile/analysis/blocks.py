"""Repeated blocks of a model in its graph, as consecutive runs of nodes."""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from soda_compile.analysis.residuals import Residual, find_residuals
from soda_compile.ir.ancestry import Ancestry


@dataclass
class _Group:
    """Consecutive nodes of one block, or of none."""

    label: str | None
    nodes: list[fx.Node]


def block_labels(graph: fx.Graph) -> dict[fx.Node, str]:
    """Return for each node inside a block the path of that block; the other nodes are left out."""
    return _labels(graph, find_residuals(graph, Ancestry(graph)))


def split_blocks(graph: fx.Graph) -> list[tuple[str, list[fx.Node]]]:
    """Cut a graph into consecutive runs of nodes.

    A block is the outermost module that a residual branch runs in and that is an element of a ModuleList, or one of
    several modules of one class side by side. Where the residual add itself, or a norm before it, belongs to the
    parent (``h = h + block(norm(h))``), it joins the block. Other work between two blocks joins the block after it;
    what comes before and after all blocks, the prologue and epilogue, is named ``(head)`` and ``(tail)``; a graph
    without blocks is one ``(model)``.

    Returns:
        Names and nodes. The name of a block that runs again, after others, ends in ``#2``.
    """
    ancestry = Ancestry(graph)
    residuals = find_residuals(graph, ancestry)
    labels = _labels(graph, residuals)
    completed = {residual.add: _common(labels, residual.heavy) for residual in residuals if residual.add not in labels}
    body = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    groups = [_Group(label, list(nodes)) for label, nodes in itertools.groupby(body, key=labels.get)]
    groups = _merge(groups, completed)
    if all(group.label is None for group in groups):
        return [("(model)", body)]
    _share_out(groups, completed)
    _take_from_prologue(groups, residuals, completed, ancestry)
    return _named(groups)


def _labels(graph: fx.Graph, residuals: Sequence[Residual]) -> dict[fx.Node, str]:
    holding = {path for residual in residuals for path in _common_paths(residual.heavy)}
    classes: dict[str, tuple[str, str]] = {}  # path: (parent, class)
    called: set[str] = set()
    for node in graph.nodes:
        for path, kind in zip(node.meta.get("paths", ()), node.meta.get("classes", ()), strict=False):
            called.add(path)
            if path in holding:
                classes[path] = (path.rpartition(".")[0], kind)
    alike = Counter(classes.values())
    # A ModuleList is never called, so its elements have a numeric name and a parent that is no module scope.
    elements = {path for path in holding if path.rpartition(".")[2].isdigit() and path.rpartition(".")[0] not in called}
    twins = {path for path, kind in classes.items() if alike[kind] > 1}
    labels = {}
    for node in graph.nodes:
        paths = node.meta.get("paths", ())
        for path in (*filter(elements.__contains__, paths), *filter(twins.__contains__, paths)):
            labels[node] = path
            break
    return labels


def _common_paths(nodes: Iterable[fx.Node]) -> set[str]:
    return set.intersection(*(set(node.meta.get("paths", ())) for node in nodes)) - {""}


def _common(labels: dict[fx.Node, str], nodes: Iterable[fx.Node]) -> str | None:
    """Return the block that all the nodes are in, if it is one."""
    found = {labels.get(node) for node in nodes}
    return found.pop() if len(found) == 1 else None


def _merge(groups: list[_Group], completed: dict[fx.Node, str | None]) -> list[_Group]:
    """Join a block that an autocast context inside it cut apart: its nodes have no module path."""
    merged: list[_Group] = []
    for group in groups:
        if (
            len(merged) > 1
            and group.label is not None
            and merged[-1].label is None
            and merged[-2].label == group.label
            and not any(completed.get(node) == group.label for node in merged[-1].nodes)
        ):
            merged[-2].nodes += merged.pop().nodes + group.nodes
        else:
            merged.append(group)
    return merged


def _share_out(groups: list[_Group], completed: dict[fx.Node, str | None]) -> None:
    """Join work behind a block to it up to its last residual add, and the rest to the block after it."""
    for position, group in enumerate(groups):
        if group.label is not None or position == 0:
            continue
        before = groups[position - 1]
        adds = [index for index, node in enumerate(group.nodes) if completed.get(node) == before.label]
        end = adds[-1] + 1 if adds else 0
        before.nodes += group.nodes[:end]
        group.nodes = group.nodes[end:]
        if position + 1 < len(groups):
            groups[position + 1].nodes = group.nodes + groups[position + 1].nodes
            group.nodes = []
    groups[:] = [group for group in groups if group.nodes]


def _take_from_prologue(
    groups: list[_Group], residuals: Sequence[Residual], completed: dict[fx.Node, str | None], ancestry: Ancestry
) -> None:
    """Move to the first block what the prologue computes from the carry of a residual add around that block."""
    if groups[0].label is not None or len(groups) < 2:
        return
    prologue, first = groups[:2]
    carries = [residual.carry for residual in residuals if completed.get(residual.add) == first.label]
    taken = [node for node in prologue.nodes if ancestry.depends_on_any(node, carries)]
    prologue.nodes = [node for node in prologue.nodes if node not in set(taken)]
    first.nodes = taken + first.nodes


def _named(groups: Sequence[_Group]) -> list[tuple[str, list[fx.Node]]]:
    names = numbered(group.label or ("(tail)" if position else "(head)") for position, group in enumerate(groups))
    return list(zip(names, (group.nodes for group in groups), strict=True))


def numbered(names: Iterable[str]) -> list[str]:
    """Return the names made unique: the second of one name ends in ``#2``."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique
