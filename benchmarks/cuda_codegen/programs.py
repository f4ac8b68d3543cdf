"""Step programs without compiled code: which graphs each kind of step calls."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.cuda_codegen.variants import Variant, variants
from soda_compile.backend.options import Options
from soda_compile.backend.prepared import PreparedDenoiser, prepare
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import Program
from soda_compile.compiler.registers import Registers
from soda_compile.compiler.variants import Subgraph
from soda_compile.ir.structure import Structure


@dataclass(frozen=True)
class NoCode:
    """Stands where the code of a graph would."""

    key: str

    def __call__(self, *inputs: Any) -> Any:
        raise RuntimeError("graphs are only counted here")


@dataclass(frozen=True, eq=False)
class StepProgram:
    """The graphs that one kind of step calls.

    Attributes:
        name: The kind.
        calls: For each graph by key how often it is called.
        flops: Of tensor cores, by the compiler's own count.
        slot_bytes: Memory of the kept values of a plan with such a step, in one branch of guidance.
    """

    name: str
    calls: Counter[str]
    flops: int
    slot_bytes: int


@dataclass(frozen=True, eq=False)
class Programs:
    """All that a denoiser compiles to.

    Attributes:
        steps: By kind, each with the conditioning within the step and with the conditioning ahead.
        once: What runs once in a generation: constants, conditioning of all steps.
        graphs: By key.
    """

    steps: list[StepProgram] = field(default_factory=list)
    once: list[StepProgram] = field(default_factory=list)
    graphs: dict[str, Subgraph] = field(default_factory=dict)


def programs_of(structure: Structure, steps: int, only: tuple[str, ...] = ()) -> Programs:
    """The programs of all kinds of steps.

    Args:
        structure: The denoiser.
        steps: Number of steps of a generation, for which conditioning is computed ahead.
        only: Names of kinds, beside the full step; all where none is given.
    """
    found = Programs()
    lowering = Lowering(target=lambda subgraph: _noted(found, subgraph))
    full, *others = variants(structure)
    kinds = [full, *(kind for kind in others if not only or kind.name in only)]
    for conditioning in ("step", "trajectory"):
        with constants_stood_in():
            prepared = _prepared(structure, kinds[0], steps, conditioning, lowering)
            if conditioning == "trajectory" and prepared.conditioning is None:
                continue
            _add(found, prepared, kinds, ", conditioning ahead" if conditioning == "trajectory" else "")
    return found


def _prepared(
    structure: Structure, kind: Variant, steps: int, conditioning: Any, lowering: Lowering
) -> PreparedDenoiser:
    plan = replace(kind.plan, actions=tuple(row * steps for row in kind.plan.actions))
    return prepare(structure, plan, Options(plan=plan, conditioning=conditioning), lowering)


def _add(found: Programs, prepared: PreparedDenoiser, kinds: Sequence[Variant], suffix: str) -> None:
    if prepared.constants is not None and not suffix:
        found.once.append(_step("constants", prepared.constants.program, 0))
    if prepared.conditioning is not None and prepared.conditioning.all_steps is not None:
        found.once.append(_step("conditioning of all steps", prepared.conditioning.all_steps, 0))
    for kind in kinds:
        program = prepared.build(kind.plan)
        found.steps.append(_step(kind.name + suffix, program, kind.step))


def _step(name: str, program: Program, step: int) -> StepProgram:
    calls = Counter(call.function.key for call in program.steps[step])  # type: ignore[attr-defined]
    return StepProgram(name, calls, program.flops[step], program.slot_memory_bytes)


def _noted(found: Programs, subgraph: Subgraph) -> NoCode:
    found.graphs[subgraph.key] = subgraph
    return NoCode(subgraph.key)


@contextmanager
def constants_stood_in() -> Iterator[None]:
    """Let constants of steps be on a device that is not there."""
    constant = Registers._constant

    def fake(registers: Registers, *args: Any) -> int:
        with FakeTensorMode():
            return constant(registers, *args)

    with mock.patch.object(Registers, "_constant", fake):
        yield
