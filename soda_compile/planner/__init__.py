"""Turns sensitivity data into a plan; imports no torch.

May import ``plans`` and the rooms below it.
"""

from soda_compile.planner.explain import explain
from soda_compile.planner.goal import Goal
from soda_compile.planner.make import fixed_interval_plan, flop_ratio, plan, slot_memory_bytes
from soda_compile.planner.problem import Strategy
from soda_compile.planner.searched import SearchedSchedule
from soda_compile.planner.simulated import SimulatedSchedule
from soda_compile.planner.stale_errors import OPERATOR_CHOICES
from soda_compile.planner.strategies import AnchorSchedule, FixedInterval, PaperSchedule, PaperUnified, Unified

__all__ = [
    "OPERATOR_CHOICES",
    "AnchorSchedule",
    "FixedInterval",
    "Goal",
    "PaperSchedule",
    "PaperUnified",
    "SearchedSchedule",
    "SimulatedSchedule",
    "Strategy",
    "Unified",
    "explain",
    "fixed_interval_plan",
    "flop_ratio",
    "plan",
    "slot_memory_bytes",
]
