"""The one line for a diffusers pipeline. Nothing is patched on classes, and nothing is global."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from soda_compile.acceleration.accelerated import Acceleration
from soda_compile.acceleration.given_plans import GivenPlans
from soda_compile.acceleration.handle import HANDLE, require_free
from soda_compile.acceleration.measurement_folder import Request
from soda_compile.acceleration.measuring import measuring_later
from soda_compile.acceleration.measuring_ahead import Runs, find_or_measure
from soda_compile.acceleration.plan_store import PlanStore
from soda_compile.acceleration.present_setting import PresentSetting
from soda_compile.acceleration.searched_plans import SearchedPlans
from soda_compile.acceleration.sharing import load_measurement
from soda_compile.acceleration.trying import number_tried
from soda_compile.acceleration.verifying import install_verified
from soda_compile.backend.options import Conditioning, check_options
from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.calibration_runs import CalibrateWith, generations_of
from soda_compile.integrations.diffusers.denoisers import denoisers_of, require_supported, require_unshared
from soda_compile.planner import AnchorSchedule, Goal, Strategy
from soda_compile.plans.plan import Plan
from soda_compile.runtime.denoiser import OnMiss
from soda_compile.storage.cache import cache_folder

Missing = OnMiss | Literal["measure"]
When = Literal["now", "lazily"]
_PlanLike = Plan | str | os.PathLike[str]


def accelerate(
    pipe: Any,
    plan: _PlanLike | Mapping[str, _PlanLike] | None = None,
    *,
    speedup: float | None = None,
    anchors: int | None = None,
    calibrate_with: CalibrateWith = 4,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    pipeline_options: Mapping[str, Any] | None = None,
    strategy: Strategy | None = None,
    max_interval: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    measurement: str | os.PathLike[str] | None = None,
    refresh: bool = False,
    closest: int | None = None,
    verify: int = 0,
    when: When = "now",
    mode: str | None = None,
    inductor: Mapping[str, Any] | None = None,
    conditioning: Conditioning = "auto",
    on_miss: Missing = "plain",
    slot_memory_bytes: int | None = None,
    guard: float | None = None,
) -> Any:
    """Compile a pipeline's denoisers by a plan and tie the step clock to the pipeline's scheduler.

    For example::

        soda_compile.accelerate(pipe, speedup=2.0, num_inference_steps=28)
        image = pipe("a lighthouse at dusk", num_inference_steps=28).images[0]

    Exactly one of ``plan``, ``speedup`` and ``anchors`` is given. With the last two a plan is looked up for this
    setting: the weights, the scheduler and its timesteps, size, guidance, strength and whatever numbers else the
    pipeline is called with. Where none is stored, it is measured now, which takes a few unaccelerated generations, and
    stored. Later calls of the pipeline at another setting (another size, number of steps, guidance or scheduler
    configuration, or a LoRA) use the plan stored for that, or else the nearest measurement, and say once for each kind
    what differs; where none is near enough, they run without a plan and say so. Compilation happens at the first call
    of each input shape.

    A generation belongs to the scheduler object that drives it. Pipelines that share the denoiser but not the
    scheduler run without the plan until they are accelerated themselves; copies of the scheduler, which servers make
    for each request, are driven by the same plans, any number at once.

    Args:
        pipe: A diffusers pipeline.
        plan: A plan or the path of one; for several denoisers one each, by component name.
        speedup: FLOPs of computing everything / FLOPs of the plan, for each denoiser.
        anchors: Number of steps that compute everything, for a pipeline with one denoiser.
        calibrate_with: What to measure on: prompts (or other values of the pipeline's first argument, or dicts of its
            arguments), one generation each; a number of generations from built-in prompts or class labels; or a
            function that runs one generation from a seed, with arguments of its own. With a function, and where
            measurements of this model are stored, the first is begun and broken off before its first step, to see its
            setting.
        num_inference_steps: What will be passed to the pipeline; its default otherwise.
        guidance_scale: What will be passed to the pipeline; its default otherwise.
        pipeline_options: More arguments for the generations that measure, such as ``{"height": 512}``.
        strategy: How to plan, as for ``soda_compile.plan``, such as ``Unified(pruning=Pruning("drift"))``.
        max_interval: Longest time, in steps, that a value may be kept; by default ten, or twice the mean distance of
            computed steps where that is more, as beyond a speedup of five.
        cache: Folder of stored measurements and plans; by default the one that the environment variable
            SODA_COMPILE_CACHE names, or ``soda_compile`` in the user's cache directory.
        measurement: What ``save_measurement`` wrote, to be used instead of measuring: a folder, or a repository of the
            hub as ``owner/name`` or ``owner/name@revision``. It may be of other weights of the same architecture.
        refresh: Measure anew, whatever is stored.
        closest: Number of generations to try plans on; 0 for none. Intervals between computed steps are simulated from
            these where the memory allows; plans of several strategies, reuse at a fixed interval among them, are run,
            and the closest is stored, with the weights that bring it closest. That takes some ten generations' time
            for each, up to eight more above a speedup of eight, and longer on small models. By default eight, where
            there is one denoiser and no ``strategy`` is given; where they cannot be run again, that is said and the
            plan of the measurement is followed. Settings that are met later follow plans of their measurement alone.
            See ``closest_plan``.
        verify: Number of generations to run both with and without the plan, with new seeds; how far their last samples
            are apart is told and stored.
        when: ``now`` looks for what is stored, or measures, before this returns. ``lazily`` returns at once: the first
            generations of a setting that nothing is stored for are measured as they run, as by ``on_miss="measure"``;
            then a thread compiles while generations go on, and those that begin after that follow the plan.
        mode: A mode of ``torch.compile``.
        inductor: Settings for Inductor.
        conditioning: ``trajectory`` computes modulations for all steps at once, see ``Options``.
        on_miss: What denoiser calls do that no plan covers: ``plain`` runs them compiled without it and warns once
            for each kind, ``error`` raises. ``soda_compile.stats(pipe)`` counts them. ``measure`` is ``plain``, and
            the first generations of a setting without a plan of its own (another number of steps, guidance, LoRA) are
            measured: as many as ``calibrate_with`` says, one at a time; later ones follow a plan for ``speedup``.
        slot_memory_bytes: Bound on the memory of kept values, for all generations under way; see ``Options``.
        guard: Such as 2.0: where the forecasts of a generation are more than so many times as far off as those of the
            calibration, which anchors show, the steps until the next anchor compute everything; see ``Options``.

    Returns:
        The same pipeline. ``restore(pipe)`` undoes everything.

    Raises:
        OptionError: If the options contradict each other, or the pipeline cannot be accelerated as it is.
        PlanError: If the plan is for another scheduler, or none can be made; with ``on_miss="error"`` also at
            ``set_timesteps`` if nothing was measured at that setting or near it.
        SensitivityError: If nothing can be measured.
    """
    require_free(pipe)
    if sum(option is not None for option in (plan, speedup, anchors)) != 1:
        raise OptionError(f"give exactly one of plan, speedup={speedup} and anchors={anchors}")
    if when not in get_args(When):
        raise OptionError(f"when is {when!r}; it must be one of {', '.join(get_args(When))}")
    if when == "lazily":
        if plan is not None:
            raise OptionError("when='lazily' measures and plans by itself; leave it out where a plan is given")
        if on_miss == "error":
            raise OptionError("when='lazily' runs the first generations without a plan, which on_miss='error' forbids")
        on_miss = "measure"
    options: dict[str, Any] = {"mode": mode, "inductor": dict(inductor or {}), "conditioning": conditioning}
    options |= {"on_miss": "plain" if on_miss == "measure" else on_miss, "slot_memory_bytes": slot_memory_bytes}
    options["guard"] = guard
    check_options(options)
    searched = {
        "on_miss='measure'": on_miss == "measure",
        "measurement": measurement,
        "refresh": refresh,
        "closest": closest,
    }
    _check_search({**searched, "verify": verify}, plan is not None)
    if when == "lazily" and (measurement is not None or refresh or closest or verify):
        raise OptionError(
            "when='lazily' measures in the generations to come; leave out measurement, refresh, closest and verify"
        )
    denoisers = denoisers_of(pipe)
    for name, module in denoisers.items():
        require_supported(name, module)
        if plan is None and (measurement is None or on_miss == "measure"):
            require_unshared(name, module)
    if plan is not None:
        given = GivenPlans(_read_plans(plan, list(denoisers), guard))
        given.require(pipe.scheduler)
        setattr(pipe, HANDLE, Acceleration(pipe, given, denoisers, options).install())
        return pipe
    if anchors is not None and len(denoisers) > 1:
        raise OptionError(f"anchors={anchors} for the denoisers {', '.join(denoisers)}; give speedup instead")
    tried = number_tried(closest, denoisers, strategy, now=when == "now")
    request = Request(Goal(anchors=anchors, speedup=speedup), strategy or AnchorSchedule(), tried)
    store = PlanStore(Path(cache) if cache is not None else cache_folder())
    source = SearchedPlans(PresentSetting(pipe, denoisers), request, store, max_interval, nearest=on_miss != "measure")
    call = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    needed = (measurement is None and when == "now") or verify
    runs = Runs.of(pipe, calibrate_with, call, pipeline_options or {}) if needed else None
    if measurement is not None:
        source.take(*load_measurement(measurement, source.present, request), os.fspath(measurement))
    elif runs is not None:
        find_or_measure(source, replace(runs, must_try=bool(closest)), refresh=refresh)
    measure = (
        measuring_later(source, generations_of(calibrate_with), less=when == "lazily") if on_miss == "measure" else None
    )
    handle = Acceleration(pipe, source, denoisers, options, measure, when == "lazily")
    if runs is not None and verify:
        install_verified(handle, source, runs, verify)
    else:
        setattr(pipe, HANDLE, handle.install())
    return pipe


def _check_search(asked: Mapping[str, Any], given: bool) -> None:
    """Check options that only concern plans that are searched for."""
    used = [name for name, value in asked.items() if value]
    if given and used:
        raise OptionError(f"{used[0]} needs something to plan for: pass speedup= or anchors= instead of a plan")
    for name in ("refresh", "closest"):
        if asked["measurement"] is not None and asked[name]:
            raise OptionError(f"measurement= is used instead of measuring, which {name}= is about; give one of them")
    if asked["verify"] < 0:
        raise OptionError(f"verify is {asked['verify']}; it must be a number of generations, or 0")


def _read_plans(plan: _PlanLike | Mapping[str, _PlanLike], names: list[str], guard: float | None) -> dict[str, Plan]:
    by_name = dict(plan) if isinstance(plan, Mapping) else dict.fromkeys(names[:1], plan)
    if set(by_name) != set(names):
        raise OptionError(
            f"plans are given for {', '.join(by_name) or 'nothing'}, but the pipeline has {', '.join(names)}; "
            "pass plan={name: plan} with one for each"
        )
    plans = {name: check_options({"plan": value, "guard": guard}).plan for name, value in by_name.items()}
    return {name: value for name, value in plans.items() if value is not None}
