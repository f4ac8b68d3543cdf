"""One process at a time, of those that share a folder; a process that ends gives its lock back, however it ends."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from soda_compile.storage.cache import keep

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock in a folder while the block runs.

    Args:
        folder: It is made; where it cannot be written, that is said and no lock is held.
        name: Names the lock; blocks with other locks may run at once.
        waiting: Called before it waits for another process that holds the lock.
    """
    lock = FileLock(folder / f".{name}.lock")

    def take() -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()

    keep(folder, take)
    try:
        yield
    finally:
        lock.release()
