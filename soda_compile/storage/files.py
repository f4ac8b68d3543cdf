"""Atomic file writes: readers see the old content or the new, whatever interrupts the write."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside a file, which takes the file's place at the end of the context, without an error."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write all of a file, or nothing.

    Args:
        path: The file to create or replace; its folder must exist.
        data: The whole content.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full; ``path`` is then unchanged.
    """
    with replaced(path) as temporary, open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
