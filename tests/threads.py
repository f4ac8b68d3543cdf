"""Work that threads do at once."""

import threading
from collections.abc import Callable, Iterable
from typing import Any


def at_once(work: Callable[[Any], None], arguments: Iterable[Any], timeout: float = 120) -> None:
    """Does ``work`` for each argument in a thread of its own, and waits for all; raises what one of them raised."""
    failed: list[BaseException] = []

    def guarded(argument: Any) -> None:
        try:
            work(argument)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=timeout)
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError(f"threads still run after {timeout:g} s each")
    if failed:
        raise failed[0]
