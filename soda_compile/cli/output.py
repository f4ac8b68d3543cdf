"""What commands print: tables for people, and with ``--json`` one value for programs."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import Profile

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON value on standard output instead of text, for programs.")
]


def print_table(table: Table) -> None:
    """Print a table; a file or a pipe has no width to fold to."""
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def print_json(value: Any) -> None:
    """Print one JSON value.

    Args:
        value: Mappings, sequences, dataclasses, paths and plain values. Plans and profiles are what their files hold;
            numbers that are not finite become null.
    """
    typer.echo(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(key): _plain(each) for key, each in value.items()}
        case float():
            return value if math.isfinite(value) else None
        case Path():
            return str(value)
        case Plan() | Profile():
            return json.loads(value.to_json())
        case Sequence() if not isinstance(value, str):
            return [_plain(each) for each in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
