"""Opens a package: verifies it, binds the weights, loads the code."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from soda_compile.compiler.program import Program
from soda_compile.errors import PackageError
from soda_compile.packages.archive import MANIFEST, read_archive
from soda_compile.packages.denoiser import PackagedDenoiser
from soda_compile.packages.environment import environment, obstacle
from soda_compile.packages.manifest import CODE, PLAN, TENSORS, WEIGHTS, Manifest, ProgramEntry, program_member
from soda_compile.packages.program_file import decode
from soda_compile.packages.sized_program import SizedProgram
from soda_compile.packages.tensors import unpack
from soda_compile.packages.weights import Source, bind, read_checkpoint
from soda_compile.plans.plan import Plan
from soda_compile.runtime.denoiser import OnMiss, PlannedDenoiser
from soda_compile.runtime.memory import keep_freed_memory
from soda_compile.runtime.slots import SlotPool
from soda_compile.storage.json_reader import read_json
from soda_compile.torch_internals.inductor import open_subgraph
from soda_compile.torch_internals.inductor_patches import Compiled

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, eq=False)
class Package:
    """The contents of a verified file; nothing of it has run.

    Attributes:
        path: The file.
        manifest: What it is and needs.
        plan: The plan.
        programs: Step programs, one for each set of shapes.
        members: All files in it by name.
    """

    path: Path
    manifest: Manifest
    plan: Plan
    programs: tuple[ProgramEntry, ...]
    members: dict[str, memoryview]

    @property
    def subgraphs(self) -> tuple[str, ...]:
        """Return the keys of the subgraphs that it holds code of."""
        keys = (name.removeprefix(CODE).partition("/")[0] for name in self.members if name.startswith(CODE))
        return tuple(dict.fromkeys(keys))


def open_package(path: str | os.PathLike[str]) -> Package:
    """Read a package without loading its code, on any machine.

    Raises:
        PackageError: It is missing, damaged, incomplete or of another format.
    """
    file = Path(path)
    members = read_archive(file)

    def parse(kind: type[Parsed], name: str) -> Parsed:
        advice = "export again, or use the version that made it"
        return read_json(kind, members[name], PackageError, advice, f"{file}: {name}")

    if MANIFEST not in members:
        raise PackageError(f"{file}: no package of soda_compile.export: it has no {MANIFEST}")
    manifest = parse(Manifest, MANIFEST)
    for name, entry in manifest.members.items():
        if name not in members:
            raise PackageError(f"{file}: {name} is missing. Copy the file again or export again")
        if hashlib.sha256(members[name]).hexdigest() != entry.sha256:
            raise PackageError(
                f"{file}: damaged or changed: {name} does not have its checksum. Copy the file again or export again"
            )
    if extra := members.keys() - manifest.members.keys() - {MANIFEST}:
        raise PackageError(f"{file}: {min(extra)} was added after the export; export again")
    plan = Plan.from_json(bytes(members[PLAN]), f"{file}: {PLAN}")
    if plan.digest != manifest.plan_digest:
        raise PackageError(f"{file}: its code was made for plan {manifest.plan_digest}, but it holds {plan.digest}")
    programs = tuple(parse(ProgramEntry, program_member(number)) for number in range(manifest.programs))
    return Package(file, manifest, plan, programs, members)


def load(
    path: str | os.PathLike[str],
    *,
    weights: Source | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    on_miss: OnMiss = "plain",
    slot_memory_bytes: int | None = None,
) -> PackagedDenoiser:
    """Load what ``export`` wrote, without Dynamo, the model's class, calibration or compiling.

    Everything is verified before native code is loaded: checksum, format, versions, device, CPU, plan, and the
    weights' names, shapes and dtypes.

    Args:
        path: The package. It holds native code: load files that you trust only.
        weights: For a package with external weights, the original checkpoint: a ``.safetensors`` file, a folder with
            such files, or tensors by name. Tensors that lie on the device in the right layout are shared, not copied.
        plan: A plan, or the path of one, that the package must have been made of.
        on_miss: What a call does that the plan does not cover, see ``Options``; ``plain`` computes everything.
        slot_memory_bytes: Bound on the memory of kept values, for all generations under way; see ``Options``.

    Returns:
        The denoiser, called as the original.

    Raises:
        PackageError: With the reason, if the package is damaged or does not fit this machine or these weights.
        PlanError: If it was made of another plan.
    """
    package = open_package(path)
    manifest = package.manifest
    if reason := obstacle(manifest.environment, environment(manifest.environment.device)):
        raise PackageError(f"{package.path}: {reason}. Export again where it will run")
    _require_plan(package, plan)
    device = torch.device(manifest.environment.device)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    with torch.inference_mode(False):
        own = unpack(package.members[TENSORS])
        origin = "weights" if isinstance(weights, Mapping) else os.fspath(weights or f"{package.path}: {WEIGHTS}")
        tensors = bind(manifest.weights, own | _checkpoint(package, weights), device, origin)
        code = _load_code(package)
        keep_freed_memory(device)
        programs = [decode(entry, own, code, device) for entry in package.programs]
    return _assemble(package, tensors, programs, device, on_miss, SlotPool(slot_memory_bytes))


def _require_plan(package: Package, plan: Plan | str | os.PathLike[str] | None) -> None:
    if plan is None:
        return
    wanted = plan if isinstance(plan, Plan) else Plan.load(plan)
    if wanted.digest != package.plan.digest:
        raise PackageError(
            f"{package.path}: made of plan {package.plan.digest}, not of the given plan {wanted.digest}; export again"
        )


def _checkpoint(package: Package, weights: Source | None) -> dict[str, torch.Tensor]:
    if package.manifest.weights_inside:
        if weights is not None:
            raise PackageError(f"{package.path}: its weights are inside; leave out weights, or export with 'external'")
        return unpack(package.members[WEIGHTS])
    if weights is None:
        raise PackageError(f"{package.path}: its weights are external; pass weights=, the original checkpoint")
    entries = package.manifest.weights
    return read_checkpoint(weights, {alias for name in entries for alias in (name, *entries[name].aliases)})


def _load_code(package: Package) -> dict[str, Compiled]:
    try:
        return {key: open_subgraph(os.fspath(package.path), key) for key in package.subgraphs}
    except RuntimeError as error:
        raise PackageError(f"{package.path}: cannot load its code: {error}") from error


def _assemble(
    package: Package,
    tensors: Mapping[str, torch.Tensor],
    programs: list[Program],
    device: torch.device,
    on_miss: OnMiss,
    pool: SlotPool,
) -> PackagedDenoiser:
    kind_of = {name: entry.kind for name, entry in package.manifest.weights.items()}
    weights = {
        name: torch.nn.Parameter(tensor, requires_grad=False) if kind_of[name] == "parameter" else tensor
        for name, tensor in tensors.items()
    }
    made = []
    for source, program in zip(package.programs, programs, strict=True):
        kinds = [read.kind == "weight" and kind_of[read.name] for read in source.call.inputs]
        planned = PlannedDenoiser(
            program=program,
            plan=package.plan,
            model_key=kinds.index("parameter"),
            timestep=source.call.timestep,
            build=None,
            on_miss=on_miss,
            pool=pool,
        )
        made.append(SizedProgram(source, planned, weights, device))
    state = {name: tensor for name, tensor in weights.items() if kind_of[name] != "own"}
    return PackagedDenoiser(package.manifest.model, package.manifest.config, package.plan, made, state)
