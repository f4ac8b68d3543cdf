"""Progress bars."""

import sys
import threading

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(*, shown: bool = True) -> Progress:
    """Return a transient bar on standard error with the time left, disabled unless that is a terminal or a notebook.

    Threads beside the main one show none: what the user runs meanwhile may have a bar of its own.

    Args:
        shown: Whether it is wanted: of several processes one shows it.
    """
    console = Console(file=sys.stderr)
    seen = (sys.stderr.isatty() or console.is_jupyter) and threading.current_thread() is threading.main_thread()
    return Progress(
        TextColumn("soda: {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and seen),
    )
