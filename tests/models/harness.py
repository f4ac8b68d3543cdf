"""Takes one tiny denoiser through the compiler, its graphs run as they are instead of being compiled by Inductor."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from eager_reference import EagerReference, tensors
from random_plans import random_plan
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

import soda_compile
from models.base import Denoiser
from soda_compile.compiler.analyse import analyse_graph, is_graph_of
from soda_compile.compiler.bind import require_fit
from soda_compile.compiler.conditioning import separate_conditioning
from soda_compile.compiler.conditioning_stage import build_stage
from soda_compile.compiler.constant_stage import take_constants
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import Program, build_program
from soda_compile.errors import CaptureError
from soda_compile.ir.structure import Structure
from soda_compile.plans.plan import Plan
from soda_compile.runtime.cuda_graphs import unrepeated
from soda_compile.runtime.denoiser import PlannedDenoiser

STEPS = 5
Outputs = list[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Finding:
    """What one denoiser showed.

    Attributes:
        captured: "whole"; "piecewise" if one of several graphs holds all regions; or "no".
        reason: Why it is not captured whole.
        expected: The regions that are written down.
        found: The regions that the compiler found, in the order in which they run.
        share: Share of the model's FLOPs that the regions hold.
        left: Heavy work inside blocks that is on the stream but in no region.
        exact: Largest difference of a compute-everything plan from the eager model.
        reuse: Largest difference of a random plan from the eager reference.
        ahead: Largest difference from that plan with the conditioning of all steps computed at once; None where the
            model has no such conditioning.
        overwritten: Largest difference of these plans from themselves, where the caller writes over all outputs and
            inputs after each call.
        stale: Largest difference of that reference from the eager model: what ``reuse`` would be if nothing was reused.
        scale: Largest value in the outputs.
        structure: What the compiler found.
    """

    captured: str
    reason: str = ""
    expected: frozenset[str] = frozenset()
    found: tuple[str, ...] = ()
    share: float = 0.0
    left: tuple[str, ...] = ()
    exact: float = float("nan")
    reuse: float = float("nan")
    ahead: float | None = None
    overwritten: float = float("nan")
    stale: float = float("nan")
    scale: float = float("nan")
    structure: Structure | None = None

    @property
    def regions_right(self) -> bool:
        return (
            self.captured != "no" and self.expected == frozenset(self.found) and len(self.expected) == len(self.found)
        )


@dataclass
class Board:
    """A backend that captures once and runs what is put into ``run``; graphs without regions run as they are."""

    structures: list[Structure] = field(default_factory=list)
    run: Callable[..., Any] | None = None

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        structure = analyse_graph(module, inputs)
        if structure is None:
            return module.forward
        self.structures.append(structure)
        self.run = module.forward
        return lambda *args: self.run(*args)

    @property
    def structure(self) -> Structure:
        (structure,) = self.structures
        return structure

    def install(self, plan: Plan, *, ahead: bool = False) -> PlannedDenoiser:
        require_fit(plan, self.structure)
        stage, lowering = None, Lowering(target="eager")
        structure, constants = take_constants(self.structure, None, lowering)
        if ahead and (split := separate_conditioning(structure)):
            conditioning, structure = split
            stage = build_stage(conditioning, plan.steps, self.structure.weight_bytes, lowering, asked=True)
        prepared = len(structure.inputs) - len(self.structure.inputs)

        def build(plan: Plan) -> Program:
            return replace(build_program(structure, plan, lowering), prepared=prepared)

        model_key = self.structure.parameters.index(True)
        made = PlannedDenoiser(build(plan), plan, model_key, None, build, constants=constants, conditioning=stage)
        self.run = made
        return made


def examine(subject: Denoiser) -> Finding:
    """Captures the model, compares its regions with the tree, and runs two plans."""
    torch._dynamo.reset()
    model, inputs = subject.build()
    if "return_dict" in inspect.signature(model.forward).parameters:
        inputs["return_dict"] = False
    calls = subject.trajectory(inputs, STEPS)
    expected = subject.regions(model)
    eager = generate(model, calls)  # also makes the tables that models build at their first call
    board, compiled, reason = compile_once(model, calls[0])
    if len(board.structures) != 1 or (reason and not is_graph_of(model, board.structure)):
        return Finding("no", reason, frozenset(expected))
    structure = board.structure
    names = structure.region_names
    finding = {
        "captured": "piecewise" if reason else "whole",
        "reason": reason,
        "expected": frozenset(expected),
        "found": names,
        "share": sum(region.flops for region in structure.regions) / structure.flops,
        "left": work_left(structure),
        "structure": structure,
    }
    if set(names) != set(expected):
        return Finding(**finding)
    board.install(soda_compile.compute_all_plan(names, STEPS, fingerprint=structure.fingerprint))
    exact = generate(compiled, calls)
    plan = random_plan(len(names), names, STEPS, fingerprint=structure.fingerprint, compute=0.4)
    board.install(plan)
    reused = generate(compiled, calls)
    overwritten = [difference(generate(compiled, calls, overwrite=True), reused)]
    reference = EagerReference(model, expected, plan).run(calls)
    made = board.install(plan, ahead=True)
    ahead = [generate(compiled, calls) for _ in range(2 if made.conditioning and made.conditioning.all_steps else 0)]
    if ahead:
        overwritten.append(difference(generate(compiled, calls, overwrite=True), ahead[-1]))
    return Finding(
        **finding,
        exact=difference(exact, eager),
        reuse=difference(reused, reference),
        ahead=max((difference(found, reused) for found in ahead), default=None),
        overwritten=max(overwritten),
        stale=difference(reference, eager),
        scale=max(value.abs().max().item() for call in eager for value in call),
    )


def compile_once(model: nn.Module, call: dict[str, Any]) -> tuple[Board, Callable[..., Any], str]:
    """The model compiled with a board, as one graph if that is possible; otherwise with the reason why not."""
    reason = ""
    for whole in (True, False):
        torch._dynamo.reset()
        board = Board()
        compiled = torch.compile(model, backend=board, fullgraph=whole, dynamic=False)
        try:
            generate(compiled, [call])
            break
        except (torch._dynamo.exc.TorchDynamoException, CaptureError) as error:
            reason = reason or " ".join(str(error).split("\n\n")[0].split())[:300]
    return board, compiled, reason


def generate(
    denoiser: Callable[..., Any] | nn.Module, calls: list[dict[str, Any]], *, overwrite: bool = False
) -> Outputs:
    """The output tensors of each call; ``overwrite`` writes over them and the inputs before the next."""
    found = []
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=len(calls) > 1):
        for call in calls:
            mine = copy.deepcopy(call) if overwrite else call
            outputs = tensors(denoiser(**mine))
            found.append(tuple(map(torch.clone, outputs)) if overwrite else outputs)
            for value in (*outputs, *tree_leaves(mine)) if overwrite else ():
                if isinstance(value, Tensor):
                    unrepeated(value).fill_(1)
    return found


def difference(left: Outputs, right: Outputs) -> float:
    """Largest absolute difference over all steps and outputs."""
    pairs = [(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)]
    return max((a - b).abs().max().item() for a, b in pairs)


def work_left(structure: Structure) -> tuple[str, ...]:
    """Heavy work inside blocks, on the residual stream, that no region holds."""
    return tuple(
        note.subject.partition(" ")[0]
        for call in structure.calls
        if not call.name.startswith("(")
        for note in call.block.notes
        if "conditioning" not in note.reason
    )
