"""The console script ``soda-compile``.

May import everything else.
"""

from soda_compile.cli import packages
from soda_compile.cli.commands import app

__all__ = ["app", "packages"]
