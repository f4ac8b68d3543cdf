"""A plan says what every region does at every step: compute, reuse, forecast or prune."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from soda_compile.errors import PlanError
from soda_compile.plans import plan_file, plan_grid
from soda_compile.plans.actions import ACTIONS, COMPUTE, DEFAULT_ACTIONS, Action
from soda_compile.plans.fitted_weights import FittedWeights, check_weights
from soda_compile.plans.fitted_weights import from_json as weights_from_json
from soda_compile.plans.fitted_weights import to_json as weights_to_json
from soda_compile.plans.notebook import picture_or_text
from soda_compile.plans.plan_file import Scalar, SlotDtype, Slots
from soda_compile.plans.pruning import Pruning
from soda_compile.plans.watched_region import WatchedRegion
from soda_compile.plans.watched_region import from_json as watched_from_json
from soda_compile.plans.watched_region import to_json as watched_to_json
from soda_compile.storage.files import named_errors, write_atomic


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """One action for every region and step, with what it was made for.

    Two plans are equal when their JSON is. Validated on construction: at least one region and one step, unique
    region names, every region computes at step 0, every forecast has enough earlier computed steps, and where a
    region prunes, `pruning` says how tokens are picked.

    Attributes:
        fingerprint: hash of the model structure it belongs to; empty when it is tied to none.
        regions: region names, such as "transformer_blocks.0.attn1".
        actions: indexed [region][step].
        timesteps: the scheduler's timesteps, one per step, as it gives them.
        timestep_input: name of the model input that carries the timestep.
        scheduler: class name of the noise scheduler.
        scheduler_digest: short hash of the noise scheduler's configuration.
        guidance: guidance scale.
        calls_per_step: denoiser calls in one step (2 when guidance makes a second call).
        flop_ratio: predicted FLOPs of the plan / FLOPs of computing everything.
        predicted_error: the value of the objective that was minimised; its unit is the objective's.
        pruning: how pruned regions pick the tokens to compute; None where none prunes.
        method: how the plan was made, as (key, value) pairs sorted by key; a mapping is accepted too.
        weights: fitted weights of kept values, sorted by step and order; where there are none, forecasts follow their
            polynomial and reuse takes values as they are.
        slots: "stack" if one value is kept for all regions together, what they add to the residual stream, so that all
            of them do the same at each step; "region" if each has its own.
        slot_dtype: what kept values are rounded to: "bfloat16", or "int8" and "float8" with a scale for each row along
            the last axis; None where they are kept as they are computed, as those are anyway that are no wider.
        watched: the region whose forecasts are compared with what is computed at anchors, with the errors that the
            calibration expects; None where it is not known.

    Raises:
        PlanError: any of the above does not hold.
    """

    fingerprint: str
    regions: tuple[str, ...]
    actions: tuple[tuple[Action, ...], ...]
    timesteps: tuple[float, ...] | None = None
    timestep_input: str | None = None
    scheduler: str | None = None
    scheduler_digest: str | None = None
    guidance: float | None = None
    calls_per_step: int = 1
    flop_ratio: float | None = None
    predicted_error: float | None = None
    pruning: Pruning | None = None
    method: tuple[tuple[str, Scalar], ...] = ()
    weights: tuple[FittedWeights, ...] = ()
    watched: WatchedRegion | None = None
    slots: Slots = "region"
    slot_dtype: SlotDtype | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", tuple(self.regions))
        object.__setattr__(self, "actions", tuple(map(tuple, self.actions)))
        object.__setattr__(self, "method", tuple(sorted(dict(self.method).items())))
        object.__setattr__(self, "weights", tuple(sorted(self.weights)))
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", tuple(map(float, self.timesteps)))
        for name in ("guidance", "flop_ratio", "predicted_error"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))
        self._check_shape()
        self._check_numbers()
        for region, row in zip(self.regions, self.actions, strict=True):
            _check_row(region, row)
        check_weights(self.weights, self.actions)
        if self.slots == "stack":
            self._check_stack()
        if self.slot_dtype is not None and self.watched is not None:
            raise PlanError(
                f"slot_dtype is {self.slot_dtype!r}, and what is rounded is not compared at anchors; pass watched=None"
            )
        if self.watched is not None:
            self.watched.check(self.regions, self.actions, self.anchors)
        if self.pruning is None and (
            prunes := [name for name, row in zip(self.regions, self.actions, strict=True) if _prunes(row)]
        ):
            raise PlanError(
                f"region {prunes[0]!r} prunes tokens, but the plan does not say how they are picked; pass pruning"
            )

    def _check_shape(self) -> None:
        if not self.regions or not self.actions or not self.actions[0]:
            raise PlanError(f"a plan needs a region and a step; got {len(self.regions)} regions and no complete row")
        if len(self.regions) != len(self.actions):
            raise PlanError(f"{len(self.regions)} regions but {len(self.actions)} rows of actions; give one row each")
        repeated = sorted({name for name in self.regions if self.regions.count(name) > 1})
        if repeated:
            raise PlanError(f"region {repeated[0]!r} appears more than once; region names must be unique")
        for region, row in zip(self.regions, self.actions, strict=True):
            if len(row) != self.steps:
                raise PlanError(f"region {region!r} has {len(row)} steps but {self.regions[0]!r} has {self.steps}")
        if self.timesteps is not None and len(self.timesteps) != self.steps:
            raise PlanError(f"{len(self.timesteps)} timesteps for {self.steps} steps; give one per step")

    def _check_numbers(self) -> None:
        if isinstance(self.calls_per_step, bool) or self.calls_per_step < 1:
            raise PlanError(f"calls_per_step is {self.calls_per_step!r}; it must be at least 1")
        numbers = [self.guidance, self.flop_ratio, self.predicted_error, *(self.timesteps or ())]
        numbers += [value for _, value in self.method if isinstance(value, float)]
        bad = [number for number in numbers if number is not None and not math.isfinite(number)]
        if bad:
            raise PlanError(f"a plan holds the number {bad[0]}; all its numbers must be finite")

    def _check_stack(self) -> None:
        for region, row in zip(self.regions, self.actions, strict=True):
            if row != self.actions[0] or _prunes(row):
                raise PlanError(
                    f'slots is "stack", where all regions do the same and none prunes, but {region!r} has {row}; '
                    'take slots="region"'
                )

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.actions[0])

    @cached_property
    def anchors(self) -> tuple[int, ...]:
        """The steps where every region computes."""
        return tuple(step for step in range(self.steps) if all(row[step] == COMPUTE for row in self.actions))

    def action(self, region_index: int, step: int) -> Action:
        """Return the action of region number `region_index` at `step`."""
        return self.actions[region_index][step]

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Per region one string with one symbol per step."""
        return tuple("".join(action.symbol for action in row) for row in self.actions)

    @cached_property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        return self.grid()

    def _repr_html_(self) -> str:
        """Return the grid as a picture, for notebooks."""

        def draw() -> bytes:
            from soda_compile.plans.plan_figure import plans_png

            return plans_png({"plan": self})

        return picture_or_text(draw, self.grid())

    def __repr__(self) -> str:
        anchors = len(self.anchors)
        return f"Plan({len(self.regions)} regions, {self.steps} steps, {anchors} anchors, digest={self.digest!r})"

    def grid(self, width: int | None = None) -> str:
        """Return the plan as a region x step grid, at most `width` columns (the terminal's by default)."""
        used = set("".join(self.rows))
        listed = (action for action in ACTIONS if action in DEFAULT_ACTIONS or action.symbol in used)
        legend = {action.symbol: str(action) for action in (*listed, *self._prunes)}
        return plan_grid.render(self.regions, self.rows, self.anchors, legend, self.flop_ratio, width)

    @property
    def _prunes(self) -> list[Action]:
        """The ways of pruning that occur."""
        return sorted({action for row in self.actions for action in row if action.kind == "prune"})

    def to_json(self) -> str:
        """Return the JSON text; equal plans give the same text."""
        used = set("".join(self.rows))
        legend: dict[str, object] = {action.symbol: {"kind": action.kind, "order": action.order} for action in ACTIONS}
        legend |= {action.symbol: asdict(action) for action in self._prunes}
        data = {
            "schema": plan_file.SCHEMA,
            **{name: getattr(self, name) for name in plan_file.PLAIN},
            "pruning": asdict(self.pruning) if self.pruning else None,
            "method": dict(self.method),
            "legend": {symbol: entry for symbol, entry in legend.items() if symbol in used},
            "actions": dict(zip(self.regions, self.rows, strict=True)),
            **({"slots": self.slots} if self.slots != "region" else {}),
            **({"slot_dtype": self.slot_dtype} if self.slot_dtype else {}),
            **({"weights": weights_to_json(self.weights)} if self.weights else {}),
            **({"watched": watched_to_json(self.watched)} if self.watched else {}),
        }
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "plan") -> "Plan":
        """Read what `to_json` wrote.

        Args:
            text: the JSON text.
            source: what to call it in an error, such as its path.

        Raises:
            PlanError: damaged JSON, unknown schema version or key, wrong type, or an invalid plan.
        """
        with named_errors(source, PlanError, "plan"):
            data = plan_file.parse(text)
            actions = tuple(_decode(region, row, data.legend, data.steps) for region, row in data.actions.items())
            return cls(
                regions=tuple(data.actions),
                actions=actions,
                timesteps=None if data.timesteps is None else tuple(data.timesteps),
                pruning=data.pruning,
                method=tuple(data.method.items()),
                weights=weights_from_json(data.weights),
                watched=None if data.watched is None else watched_from_json(data.watched.region, data.watched.errors),
                **data.model_dump(exclude=set(plan_file.DECODED)),
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON to `path` atomically.

        Raises:
            OSError: the file cannot be written.
        """
        write_atomic(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Read a file that `save` wrote.

        Raises:
            PlanError: the file is missing, unreadable or not a valid plan; the message has the path and the reason.
        """
        with named_errors(path, PlanError, "plan"):
            text = Path(path).read_bytes()
        return cls.from_json(text, source=os.fspath(path))


def compute_all_plan(regions: Sequence[str], steps: int, *, fingerprint: str = "") -> Plan:
    """Return the plan that computes every region at every step: the unaccelerated run."""
    return Plan(fingerprint, tuple(regions), ((COMPUTE,) * steps,) * len(regions), flop_ratio=1.0)


def _check_row(region: str, row: tuple[Action, ...]) -> None:
    if row[0] != COMPUTE:
        raise PlanError(f"region {region!r}, step 0: {row[0]}, but nothing is kept yet; step 0 must compute")
    computed = 0
    for step, action in enumerate(row):
        if action.history > computed:
            raise PlanError(
                f"region {region!r}, step {step}: {action} needs {action.history} earlier computed steps but has "
                f"{computed}; use an operator of lower order there or compute the region at one more step before"
            )
        computed += action == COMPUTE


def _prunes(row: tuple[Action, ...]) -> bool:
    return any(action.kind == "prune" for action in row)


def _decode(region: str, row: str, legend: dict[str, Action], steps: int) -> tuple[Action, ...]:
    unknown = sorted(set(row) - set(legend))
    if unknown:
        raise PlanError(f"region {region!r} has the symbol {unknown[0]!r}, which is not in the legend")
    if len(row) != steps:
        raise PlanError(f"region {region!r} has {len(row)} actions for {steps} steps")
    return tuple(legend[symbol] for symbol in row)
