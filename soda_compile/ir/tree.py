"""A structure as text: the tree of blocks and regions, what each costs, and what was left alone."""

import io
import shutil
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from soda_compile.ir.structure import BlockCall, Cut, Note, Region, Structure
from soda_compile.plans.plan_grid import collapse


def render(structure: Structure, title: str = "denoiser", *, width: int | None = None, color: bool = False) -> str:
    """Draw the blocks with their regions and notes, and a line of totals.

    Equal blocks share a branch, "transformer_blocks.1-5 (x5)". FLOPs are those of one call of the denoiser.

    Args:
        structure: What ``soda_compile.inspect`` found.
        title: What to call the model.
        width: Columns to use, the terminal's by default.
        color: Whether to mark the parts with terminal colours.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    console = Console(
        file=io.StringIO(), width=width, force_terminal=color, no_color=not color, highlight=False, legacy_windows=False
    )
    with console.capture() as capture:
        console.print(build_tree(structure, title))
        console.print(totals(structure), markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def build_tree(structure: Structure, title: str) -> Tree:
    """Return the tree alone, for a rich console."""
    tree = Tree(f"[bold]{escape(title)}[/bold]  {amount(structure.flops, 'FLOP')}")
    for calls in _equal_calls(structure):
        block = calls[0].block
        label = ", ".join(name for name, _ in collapse([call.name for call in calls], [""] * len(calls)))
        flops = f"{amount(block.flops, 'FLOP')} ({_share(block.flops, structure.flops)})"
        each = " each" if len(calls) > 1 else ""
        branch = tree.add(f"[cyan]{escape(label)}[/cyan]  {flops}{each}")
        for line in _region_lines(block.regions, structure.flops):
            branch.add(escape(line))
        _add_notes(branch, block.notes, calls[0].name.partition("#")[0] + ".")
    _add_notes(tree, structure.notes)
    return tree


def _add_notes(branch: Tree, notes: Sequence[Note], path: str = "") -> None:
    """Add a leaf for each note, without the path of the block that it is shown under; by reason."""
    for reason in dict.fromkeys(note.reason for note in notes):
        leaves = branch.add(f"[dim]left alone, {escape(reason)}:[/dim]")
        for note in notes:
            if note.reason == reason:
                leaves.add(f"[dim]{escape(note.subject.strip().removeprefix(path))}[/dim]")


def totals(structure: Structure) -> str:
    """Return the number of regions, their share of the work, and the memory that it takes to keep them."""
    regions = structure.regions
    flops = sum(region.flops for region in regions)
    kept = amount(sum(region.memory_bytes for region in regions), "B", 1024)
    return (
        f"{len(regions)} regions hold {amount(flops, 'FLOP')} of {amount(structure.flops, 'FLOP')} "
        f"({_share(flops, structure.flops)}); one copy of all cuts takes {kept}"
    )


def amount(value: float, unit: str, base: int = 1000) -> str:
    """Return a quantity with three digits and a prefix: ``55.1 MFLOP``, or ``64.0 KiB`` in base 1024."""
    prefixes = ["", "k", "M", "G", "T", "P"] if base == 1000 else ["", "Ki", "Mi", "Gi", "Ti", "Pi"]
    while value >= base * 0.9995 and len(prefixes) > 1:
        value /= base
        del prefixes[0]
    digits = 0 if value == int(value) and prefixes[0] == "" else 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {prefixes[0]}{unit}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "0.0%"


def _equal_calls(structure: Structure) -> list[list[BlockCall]]:
    """Return the calls of each distinct block graph, in the order of first appearance."""
    groups: dict[str, list[BlockCall]] = {}
    for call in structure.calls:
        groups.setdefault(call.block.key, []).append(call)
    return list(groups.values())


def _region_lines(regions: Sequence[Region], flops: int) -> Iterator[str]:
    """Return a line for each region, in aligned columns."""
    rows = [
        (
            region.name or "(whole block)",
            region.kind,
            " + ".join(map(_describe_cut, region.cuts)),
            f"{amount(region.flops, 'FLOP')} ({_share(region.flops, flops)})",
        )
        for region in regions
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _describe_cut(cut: Cut) -> str:
    dtype = str(cut.dtype).removeprefix("torch.")
    return f"{dtype}[{', '.join(map(str, cut.shape))}] {amount(cut.memory_bytes, 'B', 1024)}"
