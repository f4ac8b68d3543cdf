"""Writes a planned, compiled denoiser into one file."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from soda_compile.backend.options import check_options
from soda_compile.errors import OptionError, PackageError
from soda_compile.ir.structure import Structure
from soda_compile.packages.aot import compile_subgraphs
from soda_compile.packages.archive import MANIFEST, ArchiveWriter, write_archive
from soda_compile.packages.arguments import flatten
from soda_compile.packages.environment import environment
from soda_compile.packages.manifest import CODE, PLAN, REGIONS, TENSORS, WEIGHTS, Manifest, dtype_name, program_member
from soda_compile.packages.programs import Programs
from soda_compile.packages.spaces import DynamicShapes, space_of
from soda_compile.packages.tensors import pack
from soda_compile.packages.trace import ExampleInputs, ModelTensors, bind_example
from soda_compile.plans.plan import Plan


def export(
    denoiser: torch.nn.Module,
    example_inputs: ExampleInputs | Sequence[ExampleInputs],
    *,
    plan: Plan | str | os.PathLike[str],
    path: str | os.PathLike[str],
    dynamic_shapes: DynamicShapes | None = None,
    weights: Literal["inside", "external"] = "inside",
    inductor: Mapping[str, Any] | None = None,
) -> Path:
    """Compile a denoiser by a plan, ahead of time, into one file that ``soda_compile.load`` runs.

    The graph, its regions and the passes are those of ``torch.compile(denoiser, backend="soda")``. The file is a PT2
    archive: code of each distinct subgraph, step programs, plan, regions, and the weights once. It holds native code:
    load files that you trust only.

    Args:
        denoiser: The denoiser, in eval mode and on its device.
        example_inputs: Inputs of one call: a tuple by position or a dict by name. A list of these makes a package
            for several shapes, whose programs share what they can.
        plan: A plan, or the path of one.
        path: The file to write, ``dit.soda.pt2``.
        dynamic_shapes: Which sizes may vary, as torch.export takes it by argument name, with a named range for each:
            ``batch = torch.export.Dim("batch", min=1, max=8)`` and ``{"hidden_states": {0: batch}, "timestep": {0:
            batch}}``; ``2 * torch.export.Dim("half", ...)`` for sizes that must be even. One program then serves all
            of these sizes (and one more the size 1, which is another graph).
        weights: "inside" the package, or "external": then ``load`` binds them from the original checkpoint.
        inductor: Settings for Inductor.

    Returns:
        The path.

    Raises:
        OptionError: For options that make no sense.
        CaptureError: If the model cannot be captured as one graph.
        PlanError: If the plan does not fit the model.
        PackageError: If a call takes or returns what a package cannot express, the model is not one graph for all
            sizes, or the file cannot be written.
    """
    target = Path(path)
    if weights not in ("inside", "external"):
        raise OptionError(f"weights is {weights!r}; it can be 'inside' or 'external'")
    if not target.parent.is_dir():
        raise PackageError(f"cannot write {target}: there is no folder {target.parent}")
    options = check_options({"plan": plan, "inductor": dict(inductor or {})})
    if options.plan is None:
        raise OptionError("export needs a plan; soda_compile.compute_all_plan computes everything")
    if options.plan.slot_dtype == "float8" and torch.__version__ < "2.13":
        raise OptionError(
            f"slot_dtype is 'float8', which packages can hold from torch 2.13 on, and this is {torch.__version__}; "
            "take slot_dtype='int8' or 'bfloat16'"
        )
    model: torch.nn.Module = getattr(denoiser, "_orig_mod", denoiser)
    programs = Programs(model, options.plan, ModelTensors(model))
    examples = [example_inputs] if isinstance(example_inputs, tuple | Mapping) else example_inputs
    if not examples:
        raise OptionError("example_inputs is empty; pass the inputs of one call")
    for example in examples:
        leaves = flatten(bind_example(model, example).arguments)
        for space in space_of(leaves, dynamic_shapes).split_at_one():
            programs.add(example, space)
    if programs.structure is not None and programs.structure.collectives:
        raise PackageError(
            "several processes share this model, and a package cannot hold what they send each other; compile it in "
            "each of them, with torch.compile(model, backend='soda') or soda_compile.accelerate"
        )
    device = programs.weights.device
    with tempfile.TemporaryDirectory(prefix="soda-export-") as folder:
        files = compile_subgraphs(programs.subgraphs, options.inductor, Path(folder))
        try:
            with write_archive(target) as archive:
                _write(programs, device, files, archive, weights == "inside")
        except OSError as error:
            raise PackageError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _write(
    programs: Programs,
    device: torch.device,
    files: Mapping[str, Sequence[Path]],
    archive: ArchiveWriter,
    inside: bool,
) -> None:
    """Write all members, the manifest last."""
    weights, plan = programs.weights, programs.plan
    for key, paths in files.items():
        for path in paths:
            archive.add(f"{CODE}{key}/{path.name}", [path.read_bytes()])
    archive.add(PLAN, [plan.to_json().encode()])
    archive.add(REGIONS, [json.dumps(list(_regions(programs.structure))).encode()])
    for number, entry in enumerate(programs.entries):
        archive.add(program_member(number), [entry.to_bytes()])
    archive.add(TENSORS, pack(weights.of_kind("own") | programs.tensors))
    if inside:
        archive.add(WEIGHTS, pack(weights.of_kind("parameter", "buffer")))
    manifest = Manifest(
        format="soda-package/3",
        environment=environment(device.type),
        model=type(programs.model).__name__,
        config=_config(programs.model),
        weights=weights.entries,
        weights_inside=inside,
        plan_digest=plan.digest,
        scheduler=plan.scheduler,
        steps=plan.steps,
        programs=len(programs.entries),
        members=archive.members,
    )
    archive.add(MANIFEST, [manifest.to_bytes()])


def _config(model: torch.nn.Module) -> dict[str, Any] | None:
    """Return the configuration as plain JSON values, if there is one."""
    config = getattr(model, "config", None)
    if not isinstance(config, Mapping):
        return None
    return json.loads(json.dumps(dict(config), default=str))  # type: ignore[no-any-return]


def _regions(structure: Structure | None) -> Iterator[dict[str, Any]]:
    """Yield the blocks with their regions, in execution order."""
    assert structure is not None
    for call in structure.calls:
        regions = []
        for region in call.block.regions:
            cuts = [{**asdict(cut), "dtype": dtype_name(cut.dtype), "device": str(cut.device)} for cut in region.cuts]
            regions.append({"name": region.name, "kind": region.kind, "flops": region.flops, "cuts": cuts})
        yield {"name": call.name, "block": call.block.key, "flops": call.block.flops, "regions": regions}
