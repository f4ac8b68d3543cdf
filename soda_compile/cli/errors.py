"""Error reports of the command line: one line on standard error and exit code 2."""

from typing import Any

import typer
from typer.core import TyperGroup

from soda_compile.errors import SodaError

_UNUSABLE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class OneLineErrors(TyperGroup):
    """A group of commands whose expected errors end in one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors made on purpose and files that cannot be used exit with code 2."""
        try:
            return super().invoke(ctx)
        except (SodaError, *_UNUSABLE_FILE) as error:
            typer.echo(f"soda-compile: {one_line(error)}", err=True)
            raise typer.Exit(2) from None


def one_line(error: BaseException) -> str:
    """Return the first paragraph of the message without its line breaks; what follows is context for debugging."""
    return " ".join(str(error).split("\n\n")[0].split())
