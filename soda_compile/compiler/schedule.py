"""Slot traffic of a plan's rows: what is stored where, what is read, with which coefficients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from soda_compile.plans.actions import Action
from soda_compile.plans.fitted_weights import OUTPUT
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.plan_file import SlotDtype
from soda_compile.plans.pruning import IndexUse, Pruning
from soda_compile.plans.reads import reads


@dataclass(frozen=True)
class RegionMode:
    """Treatment of one region in a block graph.

    Attributes:
        action: The plan's action.
        store: Whether what is computed is stored.
        in_place: For a prune that is stored, whether it overwrites what it reads.
        pruning: For a prune, how tokens are picked; for what is tracked, how they will be.
        use: For a prune, where the choice of tokens comes from.
        track: Whether a later prune scores tokens against this step.
        weighted: For a reuse, whether the value read is multiplied by a weight.
        slot_dtype: What its slots are rounded to; None where they are not, or it touches none.
    """

    action: Action
    store: bool = False
    in_place: bool = False
    pruning: Pruning | None = None
    use: IndexUse = "own"
    track: bool = False
    weighted: bool = False
    slot_dtype: SlotDtype | None = None

    @property
    def computes(self) -> bool:
        """Return whether the region's heavy work runs for all tokens."""
        return self.action.kind == "compute"

    @property
    def works(self) -> bool:
        """Return whether any of the region's heavy work runs."""
        return self.action.kind in ("compute", "prune")

    @property
    def writes(self) -> bool:
        """Return whether a slot is written."""
        return self.store or self.track or self.use == "keep"


@dataclass(frozen=True)
class Access:
    """One region at one step.

    Attributes:
        mode: Which rewrite the block graph gets.
        places: Which of the region's slots the graph touches: the one to write for a computed region that is
            stored; those to read, newest first, for reuse and forecast; for a prune the one to read, and the one to
            write where that is another.
        coefficients: Weights of the values read, for a forecast or a weighted reuse.
        fitted: Where they are the plan's own, and not those of the polynomial, the order that the plan knows them by.
    """

    mode: RegionMode
    places: tuple[int, ...] = ()
    coefficients: tuple[float, ...] = ()
    fitted: int | None = None


def schedule_region(
    actions: Sequence[Action],
    pruning: Pruning | None = None,
    uses: Sequence[IndexUse] | None = None,
    weights: Mapping[tuple[int, int], tuple[float, ...]] | None = None,
    slot_dtype: SlotDtype | None = None,
) -> tuple[Access, ...]:
    """Lay out one region's row of a plan.

    Slots form a ring over the computed values that are read later, so a value is written where the oldest one was
    and nothing is ever moved. A prune writes its mixture over the value that it reads, unless a forecast needs that
    value later: then mixtures have a slot of their own. Forecasts read computed values, reuse and prune the newest
    mixture.

    Args:
        actions: The row.
        pruning: How the plan picks tokens.
        uses: For each step where a prune's choice of tokens comes from; "own" everywhere by default.
        weights: Fitted weights by step and order; elsewhere forecasts follow their polynomial, and reuse reads a value
            as it is.
        slot_dtype: What the slots are rounded to; None for no rounding.
    """
    sources_of = reads(actions)
    stored = {source for sources in sources_of for source in sources}
    computed = sorted(source for source in stored if actions[source].kind == "compute")
    depth = max((action.history for action in actions), default=0)
    place = {source: index % depth for index, source in enumerate(computed)}
    uses = uses or ["own"] * len(actions)
    row = []
    for step, action in enumerate(actions):
        store = step in stored
        track = pruning is not None and _scored_against(actions, uses, step)
        if action.kind == "compute":
            mode = RegionMode(action, store, pruning=pruning if track else None, track=track)
            row.append(Access(mode, (place[step],) if store else ()))
        elif action.kind == "prune":
            source = sources_of[step][0]
            in_place = store and not any(source in later for later in sources_of[step + 1 :])
            if store:
                place[step] = place[source] if in_place else depth
            mode = RegionMode(action, store, in_place, pruning, uses[step], track)
            row.append(Access(mode, (place[source], *([place[step]] if store and not in_place else []))))
        else:
            own = (weights or {}).get((step, action.order))
            forecast = OPERATORS[action.order].coefficients(sources_of[step], step) if action.kind == "forecast" else ()
            mode = RegionMode(action, weighted=own is not None and action.kind == "reuse")
            places = tuple(place[source] for source in sources_of[step])
            row.append(
                Access(mode, places, forecast if own is None else own, fitted=None if own is None else action.order)
            )
    return tuple(_rounded(access, slot_dtype) for access in row)


def schedule_output(
    actions: Sequence[Action], weights: Mapping[tuple[int, int], tuple[float, ...]]
) -> tuple[Access, ...]:
    """Lay out the row of the denoiser's output: at stale steps it is mixed with what anchors gave, never rounded.

    Args:
        actions: The row.
        weights: Of the plan; where it has none for the output, that is left as it is.
    """
    row = []
    for step, access in enumerate(schedule_region(actions)):
        if not access.mode.computes:
            values = weights.get((step, OUTPUT), (1.0, *(0.0 for _ in access.places)))
            access = Access(replace(access.mode, weighted=True), access.places, values, fitted=OUTPUT)
        row.append(access)
    return tuple(row)


def _rounded(access: Access, slot_dtype: SlotDtype | None) -> Access:
    return replace(access, mode=replace(access.mode, slot_dtype=slot_dtype)) if access.places else access


def _scored_against(actions: Sequence[Action], uses: Sequence[IndexUse], step: int) -> bool:
    """Return whether a prune that picks tokens comes after this step and before the next that computes."""
    if actions[step].kind not in ("compute", "prune"):
        return False
    for later in range(step + 1, len(actions)):
        if actions[later].kind == "compute":
            return False
        if actions[later].kind == "prune" and uses[later] != "take":
            return True
    return False
