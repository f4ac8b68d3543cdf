"""Atomic file writes: a file is the old one or the new one, never half of each."""

import os
import secrets
from pathlib import Path


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` through a temporary file beside it and a rename.

    Readers see the old content or the new, whatever interrupts the write.

    Args:
        path: the file to create or replace; its folder must exist.
        data: the whole content.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full; `path` is then unchanged.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
