"""Atomic file writes: readers see the old content or the new, whatever interrupts the write."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from soda_compile.errors import SodaError


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


@contextmanager
def named_errors(path: str | os.PathLike[str], kind: type[SodaError], what: str) -> Iterator[None]:
    """Let errors of this kind, and of reading a file, begin with its path.

    Args:
        path: The file.
        kind: The class of the errors.
        what: What the file holds, such as "plan".
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{os.fspath(path)}: cannot read the {what}: {error.strerror or error}") from None
    except kind as error:
        raise kind(f"{os.fspath(path)}: {error}") from None
