"""Options of the backend, checked before any work starts."""

import difflib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from soda_compile.compiler.lowering import Target
from soda_compile.compiler.observing import Observer
from soda_compile.compiler.steps import Granularity
from soda_compile.errors import OptionError
from soda_compile.passes.observers import standard_observers
from soda_compile.plans.plan import Plan
from soda_compile.runtime.denoiser import OnMiss
from soda_compile.runtime.misses import Miss
from soda_compile.torch_internals.inductor import inductor_options, mode_options

log = logging.getLogger(__name__)

CUDA_GRAPHS = "triton.cudagraphs"
Conditioning = Literal["auto", "step", "trajectory"]
LOWERING = "SODA_COMPILE_LOWERING"
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True, eq=False)
class Options:
    """Options of ``torch.compile(model, backend="soda", options={...})``.

    Attributes:
        plan: A plan, or the path of one; None compiles with plain Inductor.
        inductor: Settings for Inductor, as ``torch.compile(options=...)`` takes them without us.
        cuda_graphs: Whether whole steps become CUDA graphs; what mode "reduce-overhead" and Inductor's setting
            ``triton.cudagraphs`` ask for.
        granularity: What is compiled as one graph. ``block``: equal blocks share their code, which compiles fast.
            ``step``: each distinct step as a whole, which compiles longer the more blocks there are, and was 2 to 3%
            faster; see benchmarks/README.md.
        conditioning: When modulations and whatever else depends on the timestep and pooled inputs alone are computed.
            ``step``: at each step. ``trajectory``: for all steps at once at the start of a trajectory: of the first if
            the plan knows the timesteps and the host can read them, else of the second; results differ by rounding.
            ``auto``: like ``trajectory`` where the plan knows the timesteps and it can be done, else like ``step``.
        lowering: ``inductor`` compiles the rewritten graphs. ``eager`` runs them operator by operator, which shows
            whether a fault is Inductor's or ours; Inductor's settings then do nothing. The environment variable
            SODA_COMPILE_LOWERING names the default, also where no options are taken.
        on_miss: What a call does that the plan does not cover: another structure, number of steps or order of
            timesteps, gradients, no memory left. ``plain`` computes everything, compiled, and warns once for each
            kind; ``error`` raises. ``soda_compile.stats`` counts them.
        slot_memory_bytes: Bound on the memory of all kept values of a model, of all generations that are under way;
            a branch of guidance that finds no room computes everything. None for no bound.
        guard: Bound on the error of forecasts, over what the calibration expects of them: where an anchor shows more,
            the steps behind it compute everything, until an anchor shows less. The host then waits for one number of
            the anchor at the step after it. ``soda_compile.stats`` counts such steps as guarded, and shows the error
            with or without a guard. None for no guard.
        observer: Takes measurements instead of following a plan; used by ``calibrate``.
        missed: Told of calls that the plan does not cover, by whoever can plan for them, and returns what they count
            as; no option of users.
    """

    plan: Plan | None = None
    inductor: dict[str, Any] = field(default_factory=dict)
    cuda_graphs: bool = False
    granularity: Granularity = "block"
    conditioning: Conditioning = "auto"
    lowering: Target = "inductor"
    on_miss: OnMiss = "plain"
    slot_memory_bytes: int | None = None
    guard: float | None = None
    observer: Observer | None = None
    missed: Callable[[Miss], Miss] | None = None


def check_options(options: Mapping[str, Any] | None = None, mode: str | None = None) -> Options:
    """Check what would be passed to ``torch.compile`` and read the plan, without compiling anything.

    Args:
        options: As for ``torch.compile(model, backend="soda", options=options)``.
        mode: A mode of ``torch.compile``; its settings go to Inductor.

    Raises:
        OptionError: For an unknown option or mode, or a value of the wrong type.
        PlanError: For a plan file that is missing, damaged or of another version.
    """
    values = dict(options or {})
    taken = {entry.name for entry in fields(Options)} - {"cuda_graphs", "missed"} | {"mode"}
    _require_known(values, taken, "option of backend 'soda'")
    if mode is not None and values.get("mode", mode) != mode:
        raise OptionError(f"mode is given twice: {mode!r} and, as an option, {values['mode']!r}")
    mode = mode or values.get("mode")
    if mode is not None and mode not in MODES:
        raise OptionError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    plan = values.get("plan")
    if isinstance(plan, str | os.PathLike):
        plan = Plan.load(plan)
    _require_type("plan", plan, Plan, "a soda_compile.Plan or the path of one")
    _require_type("observer", values.get("observer"), Observer, "a soda_compile.Observer")
    inductor = values.get("inductor") or {}
    _require_type("inductor", inductor, dict, "a dict of Inductor settings")
    choices = inductor_options()
    _require_known({name.replace("-", "_"): None for name in inductor}, choices, "setting of Inductor")
    if plan is not None and values.get("observer") is not None:
        raise OptionError("options 'plan' and 'observer' exclude each other: measure first, then plan")
    settings = {**mode_options(mode), **{name.replace("-", "_"): value for name, value in inductor.items()}}
    cuda_graphs = bool(settings.get(CUDA_GRAPHS, False))
    granularity = _one_of("granularity", values.get("granularity", "block"), get_args(Granularity))
    conditioning = _one_of("conditioning", values.get("conditioning", "auto"), get_args(Conditioning))
    lowering = _one_of("lowering", values.get("lowering", os.environ.get(LOWERING, "inductor")), get_args(Target))
    if lowering == "eager" and (idle := sorted(settings.keys() - {CUDA_GRAPHS})):
        log.warning("graphs run without Inductor, so its settings do nothing: %s", ", ".join(idle))
    standard_observers()  # refuses wrong environment variables before work starts
    if values.get("on_miss") == "measure":
        raise OptionError("on_miss='measure' is for pipelines: accelerate(pipe, speedup=2, on_miss='measure')")
    on_miss = _one_of("on_miss", values.get("on_miss", "plain"), get_args(OnMiss))
    bound = values.get("slot_memory_bytes")
    _require_type("slot_memory_bytes", bound, int, "a number of bytes, or None")
    guard = _checked_guard(values.get("guard"))
    require_watched(plan, guard)
    return Options(
        plan, settings, cuda_graphs, granularity, conditioning, lowering, on_miss, bound, guard, values.get("observer")
    )


def require_watched(plan: Plan | None, guard: float | None) -> None:
    """Check that forecasts of a plan that is to be guarded can be watched, unless it computes everything.

    Raises:
        OptionError: The plan does not say which errors are expected, or rounds what it keeps.
    """
    if guard is None or plan is None or plan.watched is not None or len(plan.anchors) == plan.steps:
        return
    if plan.slot_dtype is not None:
        raise OptionError(
            f"guard={guard:g} compares forecasts at anchors with what is computed there, and the plan rounds what "
            f"forecasts are made of (slot_dtype={plan.slot_dtype!r}), so that they differ by rounding alone. Make it "
            "without slot_dtype, or leave guard out"
        )
    raise OptionError(
        f"guard={guard:g} compares forecasts at anchors with the errors of the calibration, and the plan has none: it "
        "was made by hand or before they were kept, no region is stale before an anchor, or anchors lie further apart "
        "than max_interval of the calibration. Make it with soda_compile.plan(sensitivity, ...), or leave guard out"
    )


def _checked_guard(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value < math.inf:
        raise OptionError(f"guard is {value!r}; it must be a number above 1, such as 2.0, or None")
    return float(value)


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise OptionError(f"option {name!r} is {value!r}, but must be one of {', '.join(map(repr, choices))}")
    return value


def _require_known(values: Mapping[str, Any], choices: Iterable[str], what: str) -> None:
    names = sorted(choices)
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            listed = f" Known: {', '.join(names)}" if len(names) < 20 else ""
            raise OptionError(f"{name!r} is no {what}{hint}.{listed}")


def _require_type(name: str, value: Any, kind: type, wanted: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise OptionError(f"option {name!r} is {value!r} ({type(value).__name__}), but must be {wanted}")
