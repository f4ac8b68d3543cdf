"""Which values of a parameter the gate runs; the others wait for the thorough run, ``pytest -m ""``."""

from collections.abc import Iterable
from typing import Any

import pytest


def gated(*first: Any, others: Iterable[Any]) -> list[Any]:
    """Returns the values of the gate, and then the others, marked; a value among both is one of the gate."""
    rest = [value for value in others if value not in first]
    parameters = [value if isinstance(value, tuple) else (value,) for value in rest]
    return [*first, *(pytest.param(*values, marks=pytest.mark.thorough) for values in parameters)]
