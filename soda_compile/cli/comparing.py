"""The command ``compare``: two plans side by side."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from soda_compile.acceleration.measurement_card import picture
from soda_compile.cli.output import AsJson, print_json, print_table
from soda_compile.errors import OptionError, PlanError
from soda_compile.plans.plan import Plan
from soda_compile.storage.files import write_atomic

_Plan = Annotated[Path, typer.Argument(help="A plan (.json).")]


def compare(
    first: _Plan,
    second: _Plan,
    out: Annotated[Path | None, typer.Option(help="Draw both here (.png).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show two plans side by side: what they cost, what they are predicted to be off, and where they differ.

    Predicted errors can be compared where objective and sensitivity are the same.

    Example: `soda-compile compare plan_2x.json plan_3x.json --out both.png`
    """
    if out is not None and (out.suffix != ".png" or not out.parent.is_dir()):
        raise OptionError(f"--out is {out}; give a .png in a folder that exists")
    plans = {str(path): Plan.load(path) for path in (first, second)}
    if len(plans) == 1:
        raise OptionError(f"both plans are {first}; give two")
    facts = {name: _facts(plan) for name, plan in plans.items()}
    differences = differences_of(*plans.values())
    if out is not None:
        _draw(out, plans)
    if as_json:
        print_json({"plans": facts, "differences": differences, "wrote": [] if out is None else [out]})
        return
    table = Table("", *facts, title="Two plans", title_justify="left")
    for key in dict.fromkeys(key for each in facts.values() for key in each):
        table.add_row(key, *(_shown(each.get(key)) for each in facts.values()))
    print_table(table)
    typer.echo(str(differences))
    if out is not None:
        typer.echo(f"wrote {out}")


@dataclass(frozen=True)
class Differences:
    """Where two plans differ.

    Attributes:
        steps: Steps at which any region does something else.
        regions: Names of regions that do something else at any step.
        actions: Actions, of all regions and steps, that differ.
        total: All actions.
    """

    steps: tuple[int, ...]
    regions: tuple[str, ...]
    actions: int
    total: int

    def __str__(self) -> str:
        if not self.actions:
            return "every region does the same at every step"
        where = f"{len(self.regions)} regions, at steps {_ranges(self.steps)}"
        return f"{self.actions} of {self.total} actions differ, in {where}"


def differences_of(one: Plan, other: Plan) -> Differences:
    """Return where two plans differ.

    Raises:
        PlanError: They are for other regions or numbers of steps.
    """
    if (one.regions, one.steps) != (other.regions, other.steps):
        raise PlanError(
            f"one plan is for {len(one.regions)} regions and {one.steps} steps, the other for {len(other.regions)} and "
            f"{other.steps}; only plans of one model and step count can be compared"
        )
    rows = [[a != b for a, b in zip(*pair, strict=True)] for pair in zip(one.actions, other.actions, strict=True)]
    return Differences(
        steps=tuple(step for step in range(one.steps) if any(row[step] for row in rows)),
        regions=tuple(name for name, row in zip(one.regions, rows, strict=True) if any(row)),
        actions=sum(map(sum, rows)),
        total=len(rows) * one.steps,
    )


def _facts(plan: Plan) -> dict[str, Any]:
    kinds = Counter(action.kind for row in plan.actions for action in row)
    return {
        "digest": plan.digest,
        "steps that compute everything": len(plan.anchors),
        "FLOPs, of computing everything": plan.flop_ratio,
        "predicted error": plan.predicted_error,
        **{name: value for name, value in plan.method if name in ("planner", "operator", "objective", "score")},
        **{f"actions: {kind}": count for kind, count in kinds.items()},
        **({"steps with fitted weights": len({each.step for each in plan.weights})} if plan.weights else {}),
    }


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _ranges(steps: Sequence[int]) -> str:
    """Return steps as short text, such as 3, 5-9."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    return ", ".join(f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _draw(out: Path, plans: dict[str, Plan]) -> None:
    if (png := picture(plans)) is None:
        raise OptionError("a picture needs matplotlib: pip install 'soda-compile[plot]'")
    write_atomic(out, png)
