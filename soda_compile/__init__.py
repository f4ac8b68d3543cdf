"""A torch.compile backend that plans, from measured sensitivity, what a diffusion transformer need not compute again.

The road: ``calibrate`` a model, ``plan`` with the sensitivity, compile with backend "soda" and run each generation
inside ``trajectory``; or ``accelerate`` a diffusers pipeline by the plan. ``export`` compiles by the plan ahead of
time, into one file that ``load`` runs.
"""

from soda_compile.artifacts import PackagedDenoiser, export, load
from soda_compile.calibration import calibrate
from soda_compile.clock import Clock, trajectory
from soda_compile.errors import (
    CaptureError,
    OptionError,
    PackageError,
    PlanError,
    ProfileError,
    SensitivityError,
    SodaError,
    TrajectoryError,
)
from soda_compile.inspection import inspect
from soda_compile.integrations.diffusers import accelerate, restore
from soda_compile.integrations.packages import install
from soda_compile.observing import Observer
from soda_compile.options import check_options
from soda_compile.planner import explain, fixed_interval_plan, plan
from soda_compile.plans import Action, Plan, compute_all_plan
from soda_compile.profiles import Profile
from soda_compile.profiling import profile
from soda_compile.pruning import Pruning
from soda_compile.sensitivity import Sensitivity, merge

__all__ = [
    "Action",
    "CaptureError",
    "Clock",
    "Observer",
    "OptionError",
    "PackageError",
    "PackagedDenoiser",
    "Plan",
    "PlanError",
    "Profile",
    "ProfileError",
    "Pruning",
    "Sensitivity",
    "SensitivityError",
    "SodaError",
    "TrajectoryError",
    "accelerate",
    "calibrate",
    "check_options",
    "compute_all_plan",
    "explain",
    "export",
    "fixed_interval_plan",
    "inspect",
    "install",
    "load",
    "merge",
    "plan",
    "profile",
    "restore",
    "trajectory",
]
