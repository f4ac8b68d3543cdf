"""Tables on a terminal, in a file and in a pipe."""

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    """Print a table; a file or a pipe has no width to fold to."""
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
