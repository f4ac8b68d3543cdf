"""A torch.compile backend that plans, from measured sensitivity, what a diffusion transformer need not compute again.

The road: ``calibrate`` a model, ``plan`` with the sensitivity, compile with backend "soda" and run each generation
inside ``trajectory``; or ``accelerate`` a diffusers pipeline by the plan.
"""

from soda_compile.calibration import calibrate
from soda_compile.clock import Clock, trajectory
from soda_compile.errors import CaptureError, OptionError, PlanError, SensitivityError, SodaError, TrajectoryError
from soda_compile.inspection import inspect
from soda_compile.integrations.diffusers import accelerate, restore
from soda_compile.observing import Observer
from soda_compile.options import check_options
from soda_compile.planner import fixed_interval_plan, plan
from soda_compile.plans import Action, Plan, compute_all_plan
from soda_compile.sensitivity import Sensitivity, merge

__all__ = [
    "Action",
    "CaptureError",
    "Clock",
    "Observer",
    "OptionError",
    "Plan",
    "PlanError",
    "Sensitivity",
    "SensitivityError",
    "SodaError",
    "TrajectoryError",
    "accelerate",
    "calibrate",
    "check_options",
    "compute_all_plan",
    "fixed_interval_plan",
    "inspect",
    "merge",
    "plan",
    "restore",
    "trajectory",
]
