"""What users are told without asking, on standard error."""

import sys


def counted(number: int, name: str) -> str:
    """Return a number of things as one says it: 1 generation, 2 generations."""
    return f"{number} {name}{'s' if number != 1 else ''}"


def say(text: str) -> None:
    """Tell the user how it goes, on standard error."""
    print(f"soda: {text}", file=sys.stderr)
