"""The model's tensors at load time: from inside the package, or bound from a checkpoint and checked."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from soda_compile.errors import PackageError
from soda_compile.packages.manifest import WeightEntry, dtype_name
from soda_compile.packages.tensors import laid_out

Source = str | os.PathLike[str] | Mapping[str, torch.Tensor]


def bind(
    entries: Mapping[str, WeightEntry], tensors: Mapping[str, torch.Tensor], device: torch.device, source: str
) -> dict[str, torch.Tensor]:
    """Return the tensors that the manifest asks for, checked and in the layout that the code was compiled for.

    Args:
        entries: The manifest's entries.
        tensors: Tensors by name; more than is asked for does no harm.
        device: Where the code runs.
        source: Name of the tensors' origin in an error.

    Raises:
        PackageError: A tensor is missing or has another shape or dtype.
    """
    bound = {}
    for name, entry in entries.items():
        found = next((tensors[alias] for alias in (name, *entry.aliases) if alias in tensors), None)
        if found is None:
            raise PackageError(
                f"{source} has no tensor {name!r}; it must be the checkpoint that the package was made of"
            )
        wanted, got = (entry.dtype, entry.shape), (dtype_name(found.dtype), list(found.shape))
        if wanted != got:
            hint = "; convert the checkpoint, or export the model in its dtype" if wanted[0] != got[0] else ""
            raise PackageError(
                f"{source}: {name} is {got[0]} {got[1]}, the package needs {wanted[0]} {wanted[1]}{hint}"
            )
        bound[name] = laid_out(found.detach(), tuple(entry.stride), device)
    return bound


def read_checkpoint(source: Source, names: set[str]) -> dict[str, torch.Tensor]:
    """Return tensors of a checkpoint by name, as far as ``names`` asks for them.

    Args:
        source: A ``.safetensors`` file, a folder with such files (all of them are one checkpoint), or tensors by name.
        names: What to read.

    Raises:
        PackageError: There is no such file, or it is damaged or of another format.
    """
    if isinstance(source, Mapping):
        return {name: tensor for name, tensor in source.items() if name in names}
    tensors: dict[str, torch.Tensor] = {}
    for file in _files(Path(source)):
        try:
            with safe_open(file, framework="pt") as checkpoint:
                tensors |= {name: checkpoint.get_tensor(name) for name in names.intersection(checkpoint.keys())}
        except (SafetensorError, OSError) as error:
            raise PackageError(f"{file}: cannot read the checkpoint: {error}") from None
    return tensors


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if not found:
            raise PackageError(f"{path}: no .safetensors file in this folder")
        return found
    if not path.is_file():
        raise PackageError(f"{path}: there is no such checkpoint")
    if path.suffix != ".safetensors":
        raise PackageError(f"{path}: only .safetensors checkpoints are read (others can run code when opened)")
    return [path]
