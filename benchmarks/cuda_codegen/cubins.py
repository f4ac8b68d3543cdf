"""Registers and spills of compiled kernels, read from their cubins with the tools that Triton brings."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cubin:
    """One kernel in one of Inductor's configurations.

    Attributes:
        kernel: Its name.
        key: Hash of all that it was compiled from.
        blocks: Sizes of blocks, and the number of warps.
        registers: For each thread.
        stack_bytes: For each thread; spilled registers lie there.
        spill_bytes: Written by each thread.
        shared_bytes: For each block.
        cubin_bytes: Size of the code.
    """

    kernel: str
    key: str
    blocks: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    cubin_bytes: int


def read_cubin(kernel: str, result: Any, capability: int) -> Cubin:
    """What is in a kernel that Triton compiled; ``result`` is Inductor's."""
    compiled, config = result.kernel, result.config
    code = compiled.asm["cubin"]
    usage = resources(_run("cuobjdump", code, "--dump-resource-usage"))
    assembler = "ptxas-blackwell" if capability >= 100 else "ptxas"  # Triton brings one of each age
    assembled = (assembler, compiled.asm["ptx"].encode(), "-v", *_target(compiled, capability))
    spilled = spills(_run(*assembled)) if usage["STACK"] else 0
    return Cubin(
        kernel=kernel,
        key=str(compiled.hash),
        blocks=", ".join([*(f"{name} {size}" for name, size in config.kwargs.items()), f"{config.num_warps} warps"]),
        registers=usage["REG"],
        stack_bytes=usage["STACK"],
        spill_bytes=spilled,
        shared_bytes=int(compiled.metadata.shared),
        cubin_bytes=len(code),
    )


def resources(text: str) -> dict[str, int]:
    """The figures of ``cuobjdump --dump-resource-usage`` for the only function in a cubin."""
    found = dict(re.findall(r"\b([A-Z]+):(\d+)", text))
    if "REG" not in found:
        raise ValueError(f"no resource usage in {text!r}")
    return {name: int(number) for name, number in found.items()}


def spills(text: str) -> int:
    """Bytes of spill stores that ``ptxas -v`` tells of."""
    return sum(map(int, re.findall(r"(\d+) bytes spill stores", text)))


def _target(compiled: Any, capability: int) -> list[str]:
    match = re.search(r"\.target\s+(\w+)", compiled.asm["ptx"])
    return ["--gpu-name", match.group(1) if match else f"sm_{capability}", "--output-file", "/dev/null"]


def _run(tool: str, content: bytes, *options: str) -> str:
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin" if tool == "cuobjdump" else ".ptx") as file:
        file.write(content)
        file.flush()
        done = subprocess.run([tools / tool, *options, file.name], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
