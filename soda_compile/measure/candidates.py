"""Plans on recorded generations: which is closest, with fitted weights and with anchors moved."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from soda_compile.measure.fitting import RIDGES, Fit, refined
from soda_compile.measure.fitting import fit as fit_weights
from soda_compile.measure.gram import Floats
from soda_compile.measure.moving import Placed, move_anchors
from soda_compile.measure.planned_run import Compared, compare
from soda_compile.measure.recording import Recording
from soda_compile.planner.anchor_count import Anchors
from soda_compile.plans.actions import Action
from soda_compile.plans.over_samples import OverSamples, over
from soda_compile.plans.plan import Plan

Objective = OverSamples
RIDGE = RIDGES[1:2]
OTHER_RIDGES = tuple(each for each in RIDGES if each not in RIDGE)


@dataclass(eq=False)
class Candidates:
    """Plans for one goal, run on recorded generations.

    Attributes:
        recording: The generations.
        objective: What shall be small over the samples.
        outputs: Outputs that are kept for fitted weights.
        plans: The plans, by name.
        errors: How far each is off with the weights of the polynomial.
        fits: Those that were fitted, with one ridge.
        denoiser_calls: What comparing and moving took.
    """

    recording: Recording
    objective: Objective
    outputs: int
    plans: dict[str, Plan]
    errors: dict[str, Floats] = field(init=False)
    fits: dict[str, Fit] = field(default_factory=dict)
    denoiser_calls: float = field(init=False)

    def __post_init__(self) -> None:
        compared = compare(self.recording, self.plans)
        self.errors, self.denoiser_calls = dict(compared.errors), compared.denoiser_calls

    @property
    def compared(self) -> Compared:
        """How far each plan is off."""
        return Compared(self.errors, self.denoiser_calls)

    @property
    def closest(self) -> str:
        """The plan that is closest of those that are fitted, if any are."""
        return min(self.fits, key=lambda name: self.size(self.fits[name].after), default=self.nearest()[0])

    def size(self, errors: Floats) -> float:
        """Return what of the errors shall be small."""
        return over(errors, self.objective)

    def nearest(self) -> list[str]:
        """Return the plans' names, see ``nearest_first``."""
        return nearest_first(self.plans, self.compared, self.objective)

    def fit(self, names: Sequence[str]) -> None:
        """Fit weights with one ridge: it shows which plan gains."""
        self.fits |= {name: self._fitted(name, RIDGE) for name in names}

    def refined(self, name: str) -> Fit:
        """Fit weights with the other ridges as well, which matters less, and shift the best for the last samples."""
        best = min(self.fits[name], self._fitted(name, OTHER_RIDGES), key=lambda each: self.size(each.after))
        return min(best, refined(self.recording, best, self.outputs), key=lambda each: self.size(each.after))

    def _fitted(self, name: str, ridges: Sequence[float]) -> Fit:
        return fit_weights(self.recording, self.plans[name], outputs=self.outputs, ridges=ridges, refine=False)

    def move(self, name: str, at: Callable[[Anchors], Plan | None], tries: int) -> str | None:
        """Add the plan with anchors where it is closer, and return its name; None where it is nowhere closer."""
        start = Placed(self.plans[name], self.errors[name])

        def run(plan: Plan) -> Floats:
            compared = compare(self.recording, {"": plan})
            self.denoiser_calls += compared.denoiser_calls
            return compared.errors[""]

        found = move_anchors(start, at, run, self.size, tries)
        if found is start:
            return None
        name = f"{name}, moved"
        self.plans[name], self.errors[name] = found.plan, found.errors
        return name


def nearest_first(plans: Mapping[str, Plan], compared: Compared, objective: Objective = "mean") -> list[str]:
    """Return the names of plans, the closest first, without those that do the same as one before.

    Args:
        plans: Plans without fitted weights, by name.
        compared: How far they take recorded generations.
        objective: What shall be small over the samples.
    """
    first: dict[tuple[tuple[Action, ...], ...], str] = {}
    for name in sorted(plans, key=lambda each: over(compared.errors[each], objective)):
        first.setdefault(plans[name].actions, name)
    return list(first.values())
