"""What users are told without asking, on standard error."""

import sys


def say(text: str) -> None:
    """Tell the user how it goes, on standard error."""
    print(f"soda: {text}", file=sys.stderr)
