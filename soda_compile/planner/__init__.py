"""Turns sensitivity data into a plan; imports no torch."""

from soda_compile.planner.make import fixed_interval_plan, flop_ratio, plan
from soda_compile.planner.stale_errors import OPERATOR_CHOICES, OperatorChoice

__all__ = ["OPERATOR_CHOICES", "OperatorChoice", "fixed_interval_plan", "flop_ratio", "plan"]
