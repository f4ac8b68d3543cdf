"""A sensitivity for the schedule of a diffusers scheduler, derived from what was measured on another."""

from collections.abc import Mapping, Sequence
from typing import Any

from soda_compile.errors import SensitivityError
from soda_compile.plans.sensitivity import Sensitivity


def derive_for(
    sensitivity: Sensitivity, scheduler: Any, arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
) -> Any:
    """Derive the sensitivity of the schedule that is set."""
    raise SensitivityError("tables cannot be derived for another schedule yet")
