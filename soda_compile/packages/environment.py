"""The environment of compiled code: versions, the device and the CPU. It runs only there, or on the like."""

import importlib.metadata
import platform
import re
import sys
from pathlib import Path

import torch

from soda_compile.packages.manifest import Environment

# Flags of /proc/cpuinfo that stand for instructions which a compiler may choose by itself.
_INSTRUCTIONS = re.compile(
    r"(p?ssse?|sse|avx|fma|f16c|bmi|popcnt|abm|movbe|adx|amx|gfni|v?aes|v?pclmul|sha).*|asimd.*|sve.*"
)


def environment(device: str) -> Environment:
    """Return the environment of this process, with a device of this type."""
    gpu = device == "cuda" and torch.cuda.is_available()
    return Environment(
        torch=str(torch.__version__),
        soda=importlib.metadata.version("soda-compile"),
        system=f"{sys.platform} {platform.machine()}",
        instructions=_instructions(),
        device=device,
        device_name=torch.cuda.get_device_name() if gpu else "",
        capability=".".join(map(str, torch.cuda.get_device_capability())) if gpu else "",
    )


def _instructions() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return [torch.backends.cpu.get_cpu_capability()]
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return sorted({flag for flag in (line[1] if line else "").split() if _INSTRUCTIONS.fullmatch(flag)})


def obstacle(made: Environment, here: Environment) -> str | None:
    """Return why code made there cannot run here, or None."""
    if made.torch != here.torch:
        return f"made with torch {made.torch}, this is torch {here.torch}"
    if made.soda != here.soda:
        return f"made with soda_compile {made.soda}, this is soda_compile {here.soda}"
    if made.system != here.system:
        return f"made on {made.system}, this is {here.system}"
    if made.device == "cuda" and not here.capability:
        return f"made for a CUDA device of compute capability {made.capability}; torch sees no CUDA device here"
    if made.capability != here.capability:
        return (
            f"made for compute capability {made.capability} ({made.device_name}), this {here.device_name} has "
            f"{here.capability}"
        )
    missing = sorted(set(made.instructions) - set(here.instructions))
    if missing:
        return f"made on a CPU with instructions that this one lacks: {', '.join(missing)}"
    return None
