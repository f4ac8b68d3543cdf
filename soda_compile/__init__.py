"""A torch.compile backend that plans, from measured sensitivity, what a diffusion transformer need not compute again.

The road: ``calibrate`` a model, ``plan`` with the sensitivity, compile with backend "soda" and run each generation
inside ``trajectory``; or ``accelerate`` a diffusers pipeline by the plan. ``export`` compiles by the plan ahead of
time, into one file that ``load`` runs.
"""

from soda_compile.acceleration.accelerate import accelerate
from soda_compile.acceleration.batched_generations import BatchedGenerations
from soda_compile.acceleration.compile_ahead import compile_ahead
from soda_compile.acceleration.handle import restore
from soda_compile.acceleration.install import install
from soda_compile.acceleration.planning import derive, plan
from soda_compile.acceleration.sharing import save_measurement
from soda_compile.acceleration.stats import Stats, stats
from soda_compile.backend.options import check_options
from soda_compile.compiler.observing import Observer
from soda_compile.compiler.why import why
from soda_compile.errors import (
    CaptureError,
    DistributedError,
    OptionError,
    PackageError,
    PlanError,
    ProfileError,
    SensitivityError,
    SodaError,
    TrajectoryError,
)
from soda_compile.measure.calibration import calibrate
from soda_compile.measure.closest import Closest, closest_plan
from soda_compile.measure.fitting import Fit, fit
from soda_compile.measure.inspection import inspect
from soda_compile.measure.planned_run import Compared, compare
from soda_compile.measure.profiling import profile
from soda_compile.measure.recording import Recording, record
from soda_compile.measure.simulation import simulate
from soda_compile.packages.denoiser import PackagedDenoiser
from soda_compile.packages.exporting import export
from soda_compile.packages.loading import load
from soda_compile.planner import (
    AnchorSchedule,
    FixedInterval,
    Goal,
    PaperSchedule,
    PaperUnified,
    SearchedSchedule,
    SimulatedSchedule,
    Unified,
    explain,
    fixed_interval_plan,
)
from soda_compile.plans.actions import Action
from soda_compile.plans.plan import Plan, compute_all_plan
from soda_compile.plans.profile import Profile
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.sensitivity import Sensitivity, merge
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.generation import Generation, new_generation, trajectory

__all__ = [
    "Action",
    "AnchorSchedule",
    "BatchedGenerations",
    "CaptureError",
    "Clock",
    "Closest",
    "Compared",
    "DistributedError",
    "Fit",
    "FixedInterval",
    "Generation",
    "Goal",
    "Observer",
    "OptionError",
    "PackageError",
    "PackagedDenoiser",
    "PaperSchedule",
    "PaperUnified",
    "Plan",
    "PlanError",
    "Profile",
    "ProfileError",
    "Pruning",
    "Recording",
    "SearchedSchedule",
    "Sensitivity",
    "SensitivityError",
    "SimulatedSchedule",
    "SodaError",
    "Stats",
    "TrajectoryError",
    "Unified",
    "accelerate",
    "calibrate",
    "check_options",
    "closest_plan",
    "compare",
    "compile_ahead",
    "compute_all_plan",
    "derive",
    "explain",
    "export",
    "fit",
    "fixed_interval_plan",
    "inspect",
    "install",
    "load",
    "merge",
    "new_generation",
    "plan",
    "profile",
    "record",
    "restore",
    "save_measurement",
    "simulate",
    "stats",
    "trajectory",
    "why",
]
