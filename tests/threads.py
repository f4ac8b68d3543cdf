"""Work that threads do at once."""

import threading
from collections.abc import Callable, Iterable
from typing import Any


def at_once(work: Callable[[Any], None], arguments: Iterable[Any], timeout: float = 120) -> None:
    """Does ``work`` for each argument in a thread of its own, and waits for all."""
    threads = [threading.Thread(target=work, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=timeout)
