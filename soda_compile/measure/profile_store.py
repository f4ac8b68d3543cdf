"""The folder of profiles, and the key of each."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from soda_compile.ir.structure import Structure
from soda_compile.storage.cache import cache_folder


def default_folder() -> Path:
    """Return the folder of profiles, ``profiles`` in ``cache_folder()``."""
    return cache_folder() / "profiles"


def device_name(device: torch.device) -> str:
    """Return the name of a device; for a CPU with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of the packages that the times depend on."""
    # What torch says of itself names the build too, which what is installed does not always do.
    return {"torch": str(torch.__version__), "soda-compile": importlib.metadata.version("soda-compile")}


def profile_key(structure: Structure, device: str, settings: Mapping[str, object]) -> str:
    """Return a hash of all that the times depend on; the keys of block graphs cover shapes, strides and dtypes."""
    parts = [device, *map(str, versions().items()), *(f"{name}={value}" for name, value in settings.items())]
    parts += [f"{call.name} {call.block.key}" for call in structure.calls]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
