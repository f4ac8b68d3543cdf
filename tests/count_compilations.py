"""Counts compilations over many sizes, for plain torch.compile and for a plan: calls of Dynamo, graphs of Inductor.

All models, kinds of size and modes, in an hour on two cores, or one with ``--only pixart:text``::

    python tests/count_compilations.py --json benchmarks/results/compilations.json

The samples are compared to those of graphs that are compiled at each size. ``--without-inductor`` counts what it would
be given and runs that operator by operator, where compiling takes hours: Z-Image takes a list of samples, so its graph
grows with the batch, and each batch has a graph of its own.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from eager_reference import tensors
from sized_models import FIRST, SIZED, VARIED, Size, SizedModel
from torch import Tensor, nn
from tracing import eager_graphs

import soda_compile
from soda_compile.backend.entry import soda
from soda_compile.compiler import lowering, symbolic_code
from soda_compile.compiler.symbolic_code import SymbolicCode
from soda_compile.plans.actions import COMPUTE, FORECAST1, REUSE
from soda_compile.plans.plan import Plan
from soda_compile.torch_internals.inductor import SizedCode
from soda_compile.torch_internals.tracing import SizeGuards

ROW = (COMPUTE, COMPUTE, FORECAST1, REUSE)  # what every region does: all that a graph is compiled for
STEPS = len(ROW)


@dataclass(frozen=True)
class Counts:
    """Compilations of one model over the sizes of one kind.

    Attributes:
        model: Its name in ``SIZED``.
        kind: What varies.
        dynamic: The argument of torch.compile.
        sizes: Number of sizes.
        dynamo_plain: Graphs that Dynamo makes without a plan; plain Inductor compiles each once.
        dynamo: Graphs that it makes with the plan.
        subgraphs: Distinct graphs that the plan hands to Inductor.
        compiled: How often Inductor compiles one of them; None where it was not run.
        error: Largest difference to the samples of graphs compiled at each size, relative to the largest value.
    """

    model: str
    kind: str
    dynamic: bool | None
    sizes: int
    dynamo_plain: int
    dynamo: int
    subgraphs: int
    compiled: int | None
    error: float


def generate(
    model: nn.Module, sized: SizedModel, sizes: Sequence[Size], dynamic: bool | None, **options: Any
) -> tuple[list[list[Tensor]], int]:
    """Generations of these sizes; outputs of each step, and how often Dynamo compiled."""
    torch._dynamo.reset()
    compiled = []

    def backend(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiled.append(module)
        return soda(module, inputs, options=options) if options else module.forward

    run = torch.compile(model, backend=backend, dynamic=dynamic)
    found = []
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=64):
        for size in sizes:
            with soda_compile.trajectory(model):
                found.append(
                    [torch.cat([t.flatten() for t in tensors(run(**call))]) for call in sized.calls(size, STEPS)]
                )
    return found, len(compiled)


def count(name: str, kind: str, by_inductor: bool = True) -> Iterator[Counts]:
    """Count for one model and one kind of size, in each mode; with Inductor, or only what it would be given."""
    sized, sizes = SIZED[name], VARIED[kind]
    model = sized.build()
    structure = soda_compile.inspect(model, **sized.calls(FIRST, STEPS)[0])
    plan = Plan(structure.fingerprint, structure.region_names, (ROW,) * len(structure.region_names))
    options = {"plan": plan, "on_miss": "error"}
    with eager_graphs():
        wanted, _ = generate(model, sized, sizes, False, **options)
    for dynamic in (True, None):
        with eager_graphs():
            _, plain = generate(model, sized, sizes, dynamic)
        with nullcontext() if by_inductor else without_inductor(), given_to_inductor() as (codes, fixed):
            found, planned = generate(model, sized, sizes, dynamic, **options)
        subgraphs = len(codes) + len(fixed)
        compiled = sum(len(code.made) for code in codes) + len(fixed) if by_inductor else None
        error = max(map(_difference, chain(*found), chain(*wanted)))
        yield Counts(name, kind, dynamic, len(sizes), plain, planned, subgraphs, compiled, error)


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@contextmanager
def given_to_inductor() -> Iterator[tuple[list[SymbolicCode], list[Any]]]:
    """Collect what Inductor is given: code for any size, and graphs of fixed sizes."""
    codes: list[SymbolicCode] = []
    fixed: list[Any] = []
    begin, compile_fixed = SymbolicCode.at_example, lowering.inductor_compile
    with (
        mock.patch.object(SymbolicCode, "at_example", lambda code: codes.append(code) or begin(code)),
        mock.patch.object(lowering, "inductor_compile", lambda *given: fixed.append(given) or compile_fixed(*given)),
    ):
        yield codes, fixed


@contextmanager
def without_inductor() -> Iterator[None]:
    """Graphs run operator by operator instead."""

    def as_it_is(module: Any, sizes: Sequence[tuple[Any, int]], options: dict[str, Any]) -> SizedCode:
        return SizedCode(module, tuple(number for _, number in sizes), SizeGuards((), {}))

    with (
        mock.patch.object(lowering, "inductor_compile", lambda module, options: module),
        mock.patch.object(symbolic_code, "inductor_compile_symbolic", as_it_is),
    ):
        yield


def table(rows: Sequence[Counts]) -> str:
    """Return the counts as a Markdown table."""
    head = ("model", "varies", "sizes", "dynamic", "Dynamo, plain", "Dynamo, plan", "subgraphs", "compiled", "error")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        compiled = "not run" if row.compiled is None else row.compiled
        counts = (row.sizes, row.dynamic, row.dynamo_plain, row.dynamo, row.subgraphs, compiled)
        lines.append((row.model, row.kind, *map(str, counts), f"{row.error:.0e}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Count what is asked for; a file of counts is added to, so that they can be made in parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="model:kind, such as pixart:text; all by default")
    parser.add_argument("--json", type=Path, help="where to add the counts, beside a table")
    parser.add_argument("--without-inductor", action="store_true", help="only count what Inductor would be given")
    given = parser.parse_args()
    chosen = given.only or [f"{name}:{kind}" for name, sized in SIZED.items() for kind in sized.kinds]
    before = json.loads(given.json.read_text()) if given.json and given.json.exists() else []
    counted = {(row["model"], row["kind"], row["dynamic"]): Counts(**row) for row in before}
    for each in chosen:
        for row in count(*each.split(":"), by_inductor=not given.without_inductor):
            counted[row.model, row.kind, row.dynamic] = row
            print(table([row]).splitlines()[-1], flush=True)
            if given.json:
                rows = sorted(counted.values(), key=lambda each: (list(SIZED).index(each.model), each.kind))
                given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
                given.json.with_suffix(".md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
