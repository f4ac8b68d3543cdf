"""Turns sensitivity data into a plan; imports no torch.

May import ``plans`` and the rooms below it.
"""

from soda_compile.planner.explain import explain
from soda_compile.planner.make import fixed_interval_plan, flop_ratio, plan, slot_memory_bytes
from soda_compile.planner.stale_errors import OPERATOR_CHOICES

__all__ = [
    "OPERATOR_CHOICES",
    "explain",
    "fixed_interval_plan",
    "flop_ratio",
    "plan",
    "slot_memory_bytes",
]
