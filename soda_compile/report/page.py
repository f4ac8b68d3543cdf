"""The page: one HTML file that needs nothing else, or one picture of the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from soda_compile.acceleration.say import counted
from soda_compile.plans.figure_file import new_figure, png_of
from soda_compile.plans.notebook import data_uri
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan_figure import draw_plan, plans_png
from soda_compile.plans.sensitivity_figure import DANGER, draw_maps, map_height, sensitivity_png
from soda_compile.plans.sensitivity_info import METRICS, PRUNE_OPERATORS
from soda_compile.report.samples import samples_figure
from soda_compile.report.steps import draw_steps, step_costs
from soda_compile.report.subject import Subject
from soda_compile.report.tradeoff import draw_tradeoff, tradeoff_of
from soda_compile.report.truth import draw_truth
from soda_compile.storage.progress import progress_bar


@dataclass(frozen=True)
class Map:
    """One picture of the sensitivity; ``image`` is a data URI."""

    metric: str
    operator: str
    image: str


def page(subject: Subject) -> str:
    """Return the report as one HTML page, pictures included."""
    template = files("soda_compile.report").joinpath("page.html").read_text()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    plan = subject.plan
    return environment.from_string(template).render(
        title=_title(subject),
        setting=list(_setting(subject)),
        planned=list(_planned(subject)),
        plan=None if plan is None else data_uri(plans_png({"plan": plan})),
        numbers=data_uri(png_of(numbers_figure(subject))),
        maps=_maps(subject),
        shown=_shown(subject),
        danger=f"{1 - DANGER:.0%}",
        verified=subject.verified,
        truth=_truth(subject),
        samples=data_uri(png_of(samples_figure(subject.pairs))) if subject.pairs else None,
    )


def picture(subject: Subject) -> bytes:
    """Return the report as one PNG: the map with the plan on it, the plan, error against speedup, cost by step."""
    plan = subject.plan
    heights = [map_height(subject.sensitivity), *([0.16 * len(plan.regions) + 1.1] if plan else []), 3.6]
    figure = new_figure(13, sum(heights))
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_maps(parts[0], subject.sensitivity, *_shown(subject), plan)
    if plan is not None:
        draw_plan(parts[1].subplots(), "plan", plan, legend=True)
    _draw_numbers(parts[-1], subject)
    return png_of(figure)


def numbers_figure(subject: Subject) -> Figure:
    """Draw error against speedup, and the cost of each step."""
    figure = new_figure(13, 3.6)
    _draw_numbers(figure, subject)
    return figure


def _draw_numbers(figure: Figure, subject: Subject) -> None:
    axes = figure.subplots(1, 1 if subject.plan is None else 2, squeeze=False)[0]
    draw_tradeoff(axes[0], tradeoff_of(subject))
    if subject.plan is not None:
        draw_steps(axes[1], step_costs(subject, subject.plan))


def _truth(subject: Subject) -> str | None:
    if not any(plan.predicted_error for plan, _ in subject.verified):
        return None
    figure = new_figure(6.5, 3.6)
    draw_truth(figure.subplots(), subject.verified)
    return data_uri(png_of(figure))


def _shown(subject: Subject) -> tuple[str, str]:
    """Return the metric and the operator whose map is shown first: those of the plan."""
    method = {} if subject.plan is None else dict(subject.plan.method)
    metric, operator = str(method.get("objective", "residual")), str(method.get("operator", "forecast1"))
    if f"{metric}.{operator}" in subject.sensitivity.mean:
        return metric, operator
    metric, _, operator = sorted(subject.sensitivity.mean)[-1].partition(".")
    return metric, operator


def _maps(subject: Subject) -> list[Map]:
    operators = (*(each.name for each in OPERATORS), *PRUNE_OPERATORS)
    keys = [(m, o) for m in METRICS for o in operators if f"{m}.{o}" in subject.sensitivity.mean]
    with progress_bar() as progress:
        tracked = progress.track(keys, description="drawing")
        return [Map(*key, data_uri(sensitivity_png(subject.sensitivity, *key, subject.plan))) for key in tracked]


def _title(subject: Subject) -> str:
    info = subject.sensitivity.info
    return f"{len(info.regions)} regions, {info.steps} steps{f' of {info.scheduler}' if info.scheduler else ''}"


def _setting(subject: Subject) -> Iterator[tuple[str, str]]:
    info = subject.sensitivity.info
    yield "model", f"fingerprint {info.fingerprint}, {len(info.regions)} regions"
    yield "steps", f"{info.steps}{f', {info.scheduler}' if info.scheduler else ''}"
    if info.guidance is not None:
        yield "guidance", f"{info.guidance:g}, {counted(info.calls_per_step, 'denoiser call')} a step"
    generations = f"{counted(info.generations, 'generation')}, {_listed(info.seeds)}"
    yield "measured on", f"{counted(info.samples, 'sample')} in {generations}"
    yield "longest interval", f"{info.max_interval} steps"
    if info.derived_from is not None:
        yield "derived from", info.derived_from
    if subject.profile is not None:
        yield "times of", subject.profile.device
    yield from sorted(info.versions.items())


def _planned(subject: Subject) -> Iterator[tuple[str, str]]:
    plan = subject.plan
    if plan is None:
        return
    yield "digest", plan.digest
    yield "steps that compute everything", f"{len(plan.anchors)} of {plan.steps}"
    if plan.flop_ratio is not None:
        yield "FLOPs", f"{plan.flop_ratio:.1%} of computing everything"
    if plan.predicted_error is not None:
        yield "predicted error", f"{plan.predicted_error:.4g}, summed over steps and regions"
    told = {name: value for name, value in plan.method if value is not None and name != "anchors"}
    yield from ((name.replace("_", " "), str(value)) for name, value in told.items())


def _listed(seeds: tuple[int, ...]) -> str:
    numbers = ", ".join(map(str, seeds)) if len(seeds) <= 6 else f"{seeds[0]} to {seeds[-1]}"
    return f"seed{'s' if len(seeds) != 1 else ''} {numbers}"
