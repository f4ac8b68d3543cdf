"""Which values of a parameter the gate runs; the others wait for the thorough run, ``pytest -m ""``."""

from collections.abc import Iterable
from typing import Any

import pytest


def gated(*first: Any, others: Iterable[Any]) -> list[Any]:
    """Returns the values of the gate, and then the others, marked; a value among both is one of the gate."""
    rest = [value for value in others if value not in first]
    parameters = [value if isinstance(value, tuple) else (value,) for value in rest]
    return [*first, *(pytest.param(*values, marks=pytest.mark.thorough) for values in parameters)]


def all_but(later: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Returns all values, and last those that the gate leaves out, marked."""
    others = list(later)
    return gated(*(value for value in values if value not in others), others=others)
