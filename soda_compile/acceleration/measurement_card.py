"""The card of a measurement: a README.md with the front matter that the hub reads, and a picture of the plans."""

import json
from collections.abc import Mapping, Sequence

from soda_compile.acceleration.measurement_folder import FIGURE, Measurement, Verified
from soda_compile.acceleration.say import counted
from soda_compile.acceleration.setting import shown
from soda_compile.plans.notebook import drawn
from soda_compile.plans.plan import Plan


def picture(plans: Mapping[str, Plan]) -> bytes | None:
    """Return a PNG of the plans; None without matplotlib."""

    def draw() -> bytes:
        from soda_compile.plans.plan_figure import plans_png

        return plans_png(plans)

    return drawn(draw)


def card(measured: Measurement, plans: Mapping[str, Plan], verified: Sequence[Verified], *, pictured: bool) -> str:
    """Return the text of the card.

    Args:
        measured: What was measured.
        plans: Made of it, by component name.
        verified: What plans were seen to do.
        pictured: Whether there is a picture of the plans.
    """
    setting = measured.setting
    title = f"{measured.model or setting.pipeline}, {setting.steps} steps"
    parts = [
        _front_matter(measured),
        f"# Measured for {title}",
        "What `soda_compile` measured of how much each module's output changes between denoising steps, and plans made "
        "of it. It serves in place of a measurement of your own:",
        "```python\nimport soda_compile\n\n"
        'soda_compile.accelerate(pipe, measurement="this folder, or owner/name on the hub", speedup=2)\n```',
        "## Setting",
        _table(_setting_rows(measured)),
        "## Plans",
        _table([("denoiser", "steps computed in full", "FLOPs", "predicted error"), *_plan_rows(plans)]),
        f"![The plans: regions by steps]({FIGURE})" if pictured else "",
        "## Errors",
        _errors(verified),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(measured: Measurement) -> str:
    """Return YAML; a JSON text is one too."""
    entries = {"library_name": "soda-compile", "tags": ["soda-compile", "diffusers", "measurement"]}
    if measured.model is not None:
        entries["base_model"] = measured.model
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in entries.items()), "---"])


def _setting_rows(measured: Measurement) -> list[tuple[str, ...]]:
    setting, tables = measured.setting, next(iter(measured.sensitivities.values())).info
    rows = [("", ""), ("pipeline", setting.pipeline)]
    rows += [("model", measured.model)] if measured.model else []
    rows += [(f"weights of {name}", f"`{digest}`") for name, digest in setting.models.items()]
    rows += [("scheduler", setting.scheduler), ("steps", str(setting.steps))]
    rows += [(name, shown(value)) for name, value in sorted(setting.call.items())]
    rows += [("timesteps", f"{setting.timesteps[0]:g} to {setting.timesteps[-1]:g}")]
    rows += [
        ("samples", f"{counted(tables.samples, 'sample')} in {counted(tables.generations, 'generation')}"),
        ("measured", measured.date),
    ]
    rows += [(name, version) for name, version in sorted(tables.versions.items())]
    return [*rows]


def _plan_rows(plans: Mapping[str, Plan]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{len(plan.anchors)} of {plan.steps}",
            "" if plan.flop_ratio is None else f"{plan.flop_ratio:.1%}",
            "" if plan.predicted_error is None else f"{plan.predicted_error:.4g}",
        )
        for name, plan in plans.items()
    ]


def _errors(verified: Sequence[Verified]) -> str:
    if not verified:
        return "No generation was run to compare: `accelerate(pipe, ..., verify=2)` does that."
    rows = [
        (each.request, f"{each.mean:.2%}", f"{each.worst:.2%}", ", ".join(map(str, each.seeds))) for each in verified
    ]
    explained = "Norm of the difference of the last samples with and without the plan / norm of those without it:"
    return f"{explained}\n\n{_table([('plan for', 'mean', 'worst', 'seeds'), *rows])}"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
