"""What the suite runs on."""

import hashlib
import importlib.metadata
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "diffusers", "cache-dit", "triton", "soda-compile")


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own; what it raises is returned as text under "reason"."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return {"reason": "the process died"}
    finally:
        process.join()


def _send(connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        connection.send(function(*arguments))
    except Exception as error:
        connection.send({"reason": f"{type(error).__name__}: {error}"})


def look(device: str) -> dict[str, Any]:
    """Type, name and usable memory of the device; "auto" takes a GPU where there is one.

    To be called in a child: a process that has asked for a GPU cannot fork any more.
    """
    import torch

    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        name = f"{torch.cuda.get_device_name()} ({total / 2**30:.0f} GiB, CUDA {torch.version.cuda})"
        return {"type": kind, "device": name, "memory_bytes": float(free - 2 * 2**30)}
    threads = len(os.sched_getaffinity(0))
    return {
        "type": kind,
        "device": f"{_processor()}, {threads} cores",
        "memory_bytes": 0.8 * psutil.virtual_memory().available,
    }


def precompile_headers() -> dict[str, Any]:
    """Has Inductor precompile the C++ headers that all its caches share, so that no row pays for the others."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        torch.compile(torch.sin)(torch.ones(8))
    return {}


def versions() -> dict[str, str]:
    """Of the packages that matter and are installed, and of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def sources_digest() -> str:
    """Hash of the code that is measured and of the code that measures, so that results of different code never mix."""
    import soda_compile
    import soda_compile.passes

    folders = [Path(package.__path__[0]) for package in (soda_compile, soda_compile.passes)] + [Path(__file__).parent]
    files = sorted({path.resolve() for folder in folders for path in folder.rglob("*.py")})
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
