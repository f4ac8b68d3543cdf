"""Progress bars."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def progress_bar() -> Progress:
    """Return a transient progress bar on standard error, disabled unless that is a terminal or a notebook."""
    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("soda: {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not (sys.stderr.isatty() or console.is_jupyter),
    )
