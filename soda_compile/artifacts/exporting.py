"""Writes a planned, compiled denoiser into one file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from soda_compile.artifacts.aot import AheadOfTime
from soda_compile.artifacts.archive import MANIFEST, ArchiveWriter
from soda_compile.artifacts.environment import environment
from soda_compile.artifacts.manifest import (
    CODE,
    PLAN,
    REGIONS,
    TENSORS,
    WEIGHTS,
    CallEntry,
    Manifest,
    MemberEntry,
    ProgramEntry,
    program_member,
    to_bytes,
)
from soda_compile.artifacts.program_file import encode
from soda_compile.artifacts.tensors import dtype_name, pack
from soda_compile.artifacts.trace import ExampleInputs, ModelTensors, trace
from soda_compile.backend import require_fit
from soda_compile.errors import OptionError, PackageError
from soda_compile.options import check_options
from soda_compile.plans import Plan
from soda_compile.program import Program, build_program
from soda_compile.structure import Structure


def export(
    denoiser: torch.nn.Module,
    example_inputs: ExampleInputs | Sequence[ExampleInputs],
    *,
    plan: Plan | str | os.PathLike[str],
    path: str | os.PathLike[str],
    weights: Literal["inside", "external"] = "inside",
    inductor: Mapping[str, Any] | None = None,
) -> Path:
    """Compiles a denoiser by a plan, ahead of time, into one file that ``soda_compile.load`` runs.

    The graph, its regions and the passes are those of ``torch.compile(denoiser, backend="soda")``. The file is a PT2
    archive: code of each distinct piece, step programs, plan, regions, and the weights once. It holds native code:
    load files that you trust only.

    Args:
        denoiser: The denoiser, in eval mode and on its device.
        example_inputs: Inputs of one call: a tuple by position or a dict by name. A list of these makes a package
            for several shapes, whose programs share what they can.
        plan: A plan, or the path of one.
        path: The file to write, ``dit.soda.pt2``.
        weights: "inside" the package, or "external": then ``load`` binds them from the original checkpoint.
        inductor: Settings for Inductor.

    Returns:
        The path.

    Raises:
        OptionError: For options that make no sense.
        CaptureError: If the model cannot be captured as one graph.
        PlanError: If the plan does not fit the model.
        PackageError: If a call takes or returns what a package cannot express, or the file cannot be written.
    """
    target = Path(path)
    if weights not in ("inside", "external"):
        raise OptionError(f"weights is {weights!r}; it can be 'inside' or 'external'")
    if not target.parent.is_dir():
        raise PackageError(f"cannot write {target}: there is no folder {target.parent}")
    options = check_options({"plan": plan, "inductor": dict(inductor or {})})
    if options.plan is None:
        raise OptionError("export needs a plan; soda_compile.compute_all_plan computes everything")
    model: torch.nn.Module = getattr(denoiser, "_orig_mod", denoiser)
    tensors = ModelTensors(model)
    traced = [trace(model, example, tensors, options.plan.timestep_input) for example in _examples(example_inputs)]
    for one in traced:
        require_fit(options.plan, one.structure)
    content = _Content(model, options.plan, tensors, tensors.device, traced[0].structure)
    with tempfile.TemporaryDirectory(prefix="soda-export-") as folder:
        lowering = AheadOfTime(options.inductor, folder=Path(folder))
        for one in traced:
            content.add_program(build_program(one.structure, options.plan, lowering), one.call)
        try:
            with ArchiveWriter(target) as archive:
                content.write(archive, lowering, inside=weights == "inside")
        except OSError as error:
            raise PackageError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _examples(given: ExampleInputs | Sequence[ExampleInputs]) -> Sequence[ExampleInputs]:
    if isinstance(given, tuple | Mapping):
        return [given]
    if not given:
        raise OptionError("example_inputs is empty; pass the inputs of one call")
    return given


@dataclass(eq=False)
class _Content:
    """What goes into a package besides code."""

    model: torch.nn.Module
    plan: Plan
    weights: ModelTensors
    device: torch.device
    structure: Structure
    programs: list[ProgramEntry] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors |= self.weights.of_kind("own")

    def add_program(self, program: Program, call: CallEntry) -> None:
        """Adds the program for one set of shapes."""
        self.programs.append(encode(program, call, self.tensors, f"({len(self.programs)})"))

    def write(self, archive: ArchiveWriter, lowering: AheadOfTime, *, inside: bool) -> None:
        """Writes all members, the manifest last."""
        for key, files in lowering.files.items():
            for file in files:
                archive.add(f"{CODE}{key}/{file.name}", [file.read_bytes()])
        archive.add(PLAN, [self.plan.to_json().encode()])
        archive.add(REGIONS, [json.dumps(list(_regions(self.structure))).encode()])
        for number, program in enumerate(self.programs):
            archive.add(program_member(number), [to_bytes(program)])
        archive.add(TENSORS, pack(self.tensors))
        if inside:
            archive.add(WEIGHTS, pack(self.weights.of_kind("parameter", "buffer")))
        manifest = Manifest(
            format="soda-package/1",
            environment=environment(self.device.type),
            model=type(self.model).__name__,
            config=_config(self.model),
            weights=self.weights.entries,
            weights_inside=inside,
            plan_digest=self.plan.digest,
            scheduler=self.plan.scheduler,
            steps=self.plan.steps,
            programs=len(self.programs),
            members={name: MemberEntry(**asdict(member)) for name, member in archive.members.items()},
        )
        archive.add(MANIFEST, [to_bytes(manifest)])


def _config(model: torch.nn.Module) -> dict[str, Any] | None:
    """The configuration as plain JSON values, as far as there is one."""
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping):
        return None
    plain: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return plain


def _regions(structure: Structure) -> Iterator[dict[str, Any]]:
    """The blocks with their regions, in execution order."""
    for call in structure.calls:
        regions = [
            {
                "name": region.name,
                "kind": region.kind,
                "flops": region.flops,
                "cuts": [
                    {**asdict(cut), "dtype": dtype_name(cut.dtype), "device": str(cut.device)} for cut in region.cuts
                ],
            }
            for region in call.block.regions
        ]
        yield {"name": call.name, "block": call.block.key, "flops": call.block.flops, "regions": regions}
