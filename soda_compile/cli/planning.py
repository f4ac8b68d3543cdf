"""The commands that choose: ``plan``, and ``profile``, which measures the costs that it chooses by."""

from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from soda_compile.cli.output import AsJson, print_json
from soda_compile.cli.target import FORMS, load_target
from soda_compile.errors import OptionError
from soda_compile.planner import (
    OPERATOR_CHOICES,
    AnchorSchedule,
    Goal,
    PaperSchedule,
    PaperUnified,
    Strategy,
    Unified,
    explain,
)
from soda_compile.planner import plan as make_plan
from soda_compile.plans.plan_file import SlotDtype
from soda_compile.plans.plan_grid import collapse
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.pruning import SCORES, Pruning
from soda_compile.plans.sensitivity import METRICS, Sensitivity

_OPERATOR = f"What stale regions do: {', '.join(OPERATOR_CHOICES)}. By default forecast1, with choices auto."


def plan(
    sensitivity: Annotated[Path, typer.Argument(help="What soda_compile.calibrate measured (.safetensors).")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps to plan for, where others were measured.")
    ] = None,
    anchors: Annotated[int | None, typer.Option(help="Number of steps that compute everything.")] = None,
    speedup: Annotated[
        float | None,
        typer.Option(help="Cost of computing everything / cost of the plan: time with --profile, or FLOPs."),
    ] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Time of a generation's denoiser calls, to be kept.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Largest summed error, to be kept.")] = None,
    memory_bytes: Annotated[int | None, typer.Option(help="Most that kept values may take.")] = None,
    operator: Annotated[str | None, typer.Option(help=_OPERATOR)] = None,
    objective: Annotated[
        str | None, typer.Option(help=f"Error to minimise: {', '.join(METRICS)}. By default residual.")
    ] = None,
    step_weights: Annotated[bool, typer.Option(help="Weight each step by how far it moves the sample.")] = False,
    worst: Annotated[
        bool, typer.Option("--worst", help="Minimise the 90th percentile over samples, not the mean.")
    ] = False,
    slots: Annotated[
        str | None, typer.Option(help="What is kept: region, each one's outputs, or stack, one value of all together.")
    ] = None,
    slot_dtype: Annotated[
        str | None, typer.Option(help=f"What kept values are rounded to: {', '.join(get_args(SlotDtype))}.")
    ] = None,
    pruning: Annotated[str | None, typer.Option(help=f"Prune tokens by this score: {', '.join(SCORES)}.")] = None,
    unified: Annotated[
        bool, typer.Option("--unified", help="Let each region choose at every step; --pruning implies it.")
    ] = False,
    profile: Annotated[Path | None, typer.Option(help="Measured costs (.json); see soda-compile profile.")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Exactly the method of SODA: OFS+DCS, with --pruning OFS+UAS.")
    ] = False,
    paper_lambda: Annotated[float, typer.Option(help="Lambda of UAS, in alpha = lambda * Ec + beta.")] = -1.0,
    out: Annotated[Path | None, typer.Option(help="Write the plan here (.json).")] = None,
    as_json: AsJson = False,
) -> None:
    """Choose what every region does at every step, show the plan, and say why.

    Give one number to reach: --speedup, --anchors, --latency-ms (with --profile) or --max-error (with --unified).

    Example: `soda-compile plan sensitivity.safetensors --speedup 2 --out plan.json`
    """
    if out is not None and not out.parent.is_dir():
        raise OptionError(f"cannot write {out}: there is no folder {out.parent}")
    measured, loss = Sensitivity.load(sensitivity), None
    if steps is not None:
        from soda_compile.acceleration.planning import derive

        derived = derive(measured, steps=steps)
        measured, loss = derived.sensitivity, derived.loss
    costs = None if profile is None else Profile.load(profile)
    settings = {
        "operator": operator,
        "objective": objective,
        "step_weights": step_weights,
        "over_samples": "worst" if worst else None,
        "slots": slots,
        "slot_dtype": slot_dtype,
    }
    strategy = _strategy(
        {key: value for key, value in settings.items() if value}, pruning, unified, paper, paper_lambda
    )
    made = make_plan(measured, Goal(anchors, speedup, latency_ms, max_error, memory_bytes), strategy, profile=costs)
    if out is not None:
        made.save(out)
    if as_json:
        print_json({"plan": made, "derived": loss, "wrote": [] if out is None else [out]})
        return
    if loss is not None:
        typer.echo(f"{loss}\n")
    typer.echo(made.grid())
    if pruning is not None or costs is not None:
        typer.echo("\n" + explain(made, measured, costs))
    if out is not None:
        typer.echo(f"wrote {out}")


def _strategy(
    settings: dict[str, Any], pruning: str | None, unified: bool, paper: bool, paper_lambda: float
) -> Strategy:
    score = None if pruning is None else Pruning(pruning)  # type: ignore[arg-type]
    if paper:
        if settings or unified:
            raise OptionError("--paper fixes how errors are summed, what is kept and --unified; leave them out")
        return PaperSchedule() if score is None else PaperUnified(score, paper_lambda)
    if (unified or score is not None) and "slots" in settings:
        raise OptionError("--slots is for regions that all do the same; leave out --unified and --pruning")
    return Unified(pruning=score, **settings) if unified or score is not None else AnchorSchedule(**settings)


def profile(
    target: Annotated[str, typer.Argument(help=f"{FORMS}; returns the model and its inputs.")],
    pruning: Annotated[str | None, typer.Option(help=f"Time pruning by this score too: {', '.join(SCORES)}.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often to time each step.")] = 7,
    mode: Annotated[str | None, typer.Option(help="As for torch.compile.")] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure anew, whatever is kept.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the profile here as well (.json).")] = None,
    as_json: AsJson = False,
) -> None:
    """Time what each action of each region costs, compiled, on this device; the result is kept for the next time.

    With it, plan --profile reaches a speedup in measured time instead of FLOPs. Keep the machine quiet meanwhile.

    Example: `soda-compile profile soda_compile.digits.example:example --pruning drift --out profile.json`
    """
    from soda_compile.measure.profile_store import default_folder
    from soda_compile.measure.profiling import profile as measure

    if out is not None and not out.parent.is_dir():
        raise OptionError(f"cannot write {out}: there is no folder {out.parent}")
    score = None if pruning is None else Pruning(pruning)  # type: ignore[arg-type]
    found = load_target(target)
    made = measure(found.model, found.kwargs or found.args, pruning=score, rounds=rounds, mode=mode, refresh=refresh)
    kept = default_folder() / f"{made.key}.json"
    if out is not None:
        made.save(out)
    if as_json:
        print_json({"profile": made, "kept": kept, "wrote": [] if out is None else [out]})
        return
    typer.echo(describe(made))
    typer.echo(f"kept as {kept}")
    if out is not None:
        typer.echo(f"wrote {out}")


def describe(profile: Profile) -> str:
    """Return the costs as text, one line for each group of equal regions."""
    lines = []
    for row in profile.cost_us:
        measured = [(action, cost) for action, cost in zip(PROFILED, row, strict=True) if not np.isnan(cost)]
        lines.append(", ".join(f"{action} {cost:.4g}" for action, cost in measured if action.kind != "reuse"))
    return "\n".join(
        [
            f"{profile.device}: {profile.full_us:.4g} us a call, {profile.base_us:.4g} us where everything is reused; "
            f"spread {profile.spread:.0%}",
            "us on top of reusing everything:",
            *(f"  {label}: {line}" for label, line in collapse(profile.regions, lines)),
        ]
    )
