"""Observers of passes: a check, logs, dumps, and the switches that leave passes out.

Environment variables, read whenever passes run:

- ``SODA_COMPILE_DUMP=folder``: graphs before and after each pass as text, ``003_insert_reuse_before.txt``. The numbers
  count passes of the process. ``TORCH_TRACE`` gets the same texts, for tlparse.
- ``SODA_COMPILE_SKIP_PASSES=name,name``: optional passes to leave out.
- ``SODA_COMPILE_PASS_LIMIT=n``: runs only the first n optional passes of the process. Where results are wrong for one n
  and right for n - 1, the log (``TORCH_LOGS="+soda_compile"``) names the pass that makes the difference.
"""

import importlib
import itertools
import logging
import os
import pkgutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import fx

import soda_compile.passes
from soda_compile.errors import OptionError
from soda_compile.passes.base import Pass, PassResult
from soda_compile.storage.files import write_atomic
from soda_compile.torch_internals.tracing import log_artifact

log = logging.getLogger(__name__)

DUMP = "SODA_COMPILE_DUMP"
TRACE = "TORCH_TRACE"  # torch's own; texts of graphs take long to make, so none are made for nobody
SKIP = "SODA_COMPILE_SKIP_PASSES"
LIMIT = "SODA_COMPILE_PASS_LIMIT"

_dumped, _optional = itertools.count(1), itertools.count(1)  # over the whole process


class Observer:
    """Hooks around each pass; by itself it allows everything and does nothing."""

    def forbids(self, step: Pass) -> str:
        """Return why the pass must not run; empty if it may."""
        return ""

    def before(self, step: Pass, graph: fx.Graph) -> None:
        """Look at the graph that the pass will rewrite."""

    def after(self, step: Pass, graph: fx.Graph, result: PassResult) -> None:
        """Look at the graph that the pass left, and at its result."""


class Lint(Observer):
    """Checks that the graph is well formed after each pass."""

    def after(self, step: Pass, graph: fx.Graph, result: PassResult) -> None:
        """Check the graph; the error names the pass."""
        try:
            graph.lint()
        except RuntimeError as error:
            error.add_note(f"the graph is malformed after the pass {step.name}")
            raise


class Log(Observer):
    """Logs for each pass its time, how often operators come up that it added or removed, and its result."""

    def before(self, step: Pass, graph: fx.Graph) -> None:
        """Note the time and the operators."""
        self._operators, self._started = _operators(graph), time.perf_counter()

    def after(self, step: Pass, graph: fx.Graph, result: PassResult) -> None:
        """Log at debug level."""
        elapsed = 1e3 * (time.perf_counter() - self._started)
        after = _operators(graph)
        counts = {name: after[name] - self._operators[name] for name in self._operators | after}
        differences = [f"{name} {count:+d}" for name, count in counts.items() if count]
        skipped = [str(note) for note in result.skipped]
        log.debug(
            "%s: %.1f ms; operators %s; changed %s; left %s",
            step.name, elapsed, differences, list(result.changed), skipped,
        )  # fmt: skip


def _operators(graph: fx.Graph) -> Counter[str]:
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_function")


class Dump(Observer):
    """Writes the graph before and after each pass into a folder, if there is one, and into torch's trace."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def before(self, step: Pass, graph: fx.Graph) -> None:
        """Write the first text."""
        self._number = next(_dumped)
        self._write(f"{self._number:03}_{step.name}_before", graph)

    def after(self, step: Pass, graph: fx.Graph, result: PassResult) -> None:
        """Write the second text."""
        self._write(f"{self._number:03}_{step.name}_after", graph)

    def _write(self, name: str, graph: fx.Graph) -> None:
        log_artifact(f"soda_pass_{name}", lambda: text(graph))
        if self.folder:
            write_atomic(self.folder / f"{name}.txt", text(graph).encode())


def text(graph: fx.Graph) -> str:
    """Return the graph as Python code with the dtypes and shapes of all values."""
    return graph.python_code("self", verbose=True).src


@dataclass(frozen=True)
class Skip(Observer):
    """Leaves passes out by name."""

    names: frozenset[str]

    def forbids(self, step: Pass) -> str:
        """Return which variable names the pass."""
        return f"left out by {SKIP}" if step.name in self.names else ""


@dataclass(frozen=True)
class Limit(Observer):
    """Leaves out optional passes after so many of the process."""

    limit: int

    def forbids(self, step: Pass) -> str:
        """Count the pass if it is optional."""
        if not step.optional:
            return ""
        number = next(_optional)
        log.debug("optional pass %d: %s", number, step.name)
        return f"left out by {LIMIT}={self.limit}" if number > self.limit else ""


def standard_observers() -> tuple[Observer, ...]:
    """Return new observers, as logging and the environment ask for them.

    Raises:
        OptionError: If a variable names no pass, or one that cannot be left out, or is no number.
    """
    observers: list[Observer] = [Lint()]
    if log.isEnabledFor(logging.DEBUG):
        observers.append(Log())
    folder = os.environ.get(DUMP)
    if folder or os.environ.get(TRACE):
        observers.append(Dump(Path(folder) if folder else None))
    if names := os.environ.get(SKIP):
        observers.append(Skip(_optional_passes(names)))
    if limit := os.environ.get(LIMIT):
        if not limit.isdecimal():
            raise OptionError(f"{LIMIT} is {limit!r}, but must be a number of passes, such as 12")
        observers.append(Limit(int(limit)))
    return tuple(observers)


def _optional_passes(names: str) -> frozenset[str]:
    chosen = frozenset(name.strip() for name in names.split(",") if name.strip())
    for module in pkgutil.iter_modules(soda_compile.passes.__path__):
        importlib.import_module(f"{soda_compile.passes.__name__}.{module.name}")
    passes = {found.name: found for found in Pass.__subclasses__()}
    optional = ", ".join(sorted(name for name, found in passes.items() if found.optional))
    for name in sorted(chosen):
        if name not in passes:
            raise OptionError(f"{SKIP} names {name!r}, which is no pass. Those that can be left out: {optional}")
        if not passes[name].optional:
            raise OptionError(
                f"{SKIP} names {name!r}, without which results would be wrong. Those that can be left out: {optional}"
            )
    return chosen
