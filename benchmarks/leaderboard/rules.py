"""Methods that are run as rules: FORA, TaylorSeer, HiCache, TeaCache, MagCache, a fit of the whole stack's residual."""

import functools
from collections.abc import Sequence
from typing import Any

from benchmarks.leaderboard.branch_rules import branch_rule
from benchmarks.leaderboard.forecasts import Basis, hermite, taylor
from benchmarks.leaderboard.method import Method
from benchmarks.leaderboard.spacing import spread
from benchmarks.leaderboard.stack import stack_rule
from benchmarks.leaderboard.stack_rules import Accumulated, FittedStack, Magnitudes
from benchmarks.leaderboard.stack_truth import StackTruth, stack_truth
from benchmarks.leaderboard.subject import Subject
from benchmarks.leaderboard.tuning import Search, Setting, counts, thresholds

WARM_UPS = (1, 2, 4)
CONTRACTIONS = (0.5, 0.6, 0.7)  # HiCache recommends 0.5; above 1 / sqrt(2) it goes beyond Taylor's slope
LIMITS = (3, 8)  # of steps skipped in a row


def masked(subject: Subject, install: Any, title: str = "") -> list[Search]:
    """Settings by evenly spread masks, one search for each warm-up."""

    def make(warm_up: int, count: int) -> Setting:
        mask = spread(subject.steps, count, warm_up)
        return Setting(f"{title}{count} steps, warm-up {warm_up}", functools.partial(install, mask))

    return [counts(functools.partial(make, each), subject.steps, each + 1) for each in WARM_UPS]


def _branches(order: int, bases: dict[str, Basis], subject: Subject, seeds: Sequence[int]) -> list[Search]:
    found = []
    for title, basis in bases.items():
        install = functools.partial(_install_branches, order, basis)
        found += masked(subject, install, title)
    return found


def _install_branches(order: int, basis: Basis, mask: tuple[bool, ...], subject: Subject) -> Any:
    return branch_rule(subject, mask, order, basis)


def _tea(subject: Subject, seeds: Sequence[int]) -> list[Search]:
    truth = stack_truth(subject, seeds)

    def make(degree: int, limit: int, threshold: float) -> Setting:
        polynomial = truth.tea_polynomial(degree)
        return Setting(
            f"threshold {threshold:g}, degree {degree}, at most {limit} in a row",
            lambda own: stack_rule(own, Accumulated(threshold, polynomial, limit, own.steps)),
        )

    pairs = [(degree, limit) for degree in (1, 4) for limit in (*LIMITS, subject.steps)]
    return [thresholds(functools.partial(make, *pair), 1e-3, 30.0) for pair in pairs]


def _magnitudes(subject: Subject, seeds: Sequence[int]) -> list[Search]:
    ratios = stack_truth(subject, seeds).ratios

    def make(retention: float, limit: int, threshold: float) -> Setting:
        return Setting(
            f"threshold {threshold:g}, retention {retention:g}, at most {limit} in a row",
            lambda own: stack_rule(own, Magnitudes(threshold, ratios, limit, round(retention * own.steps))),
        )

    pairs = [(retention, limit) for retention in (0.04, 0.1, 0.2) for limit in (*LIMITS, subject.steps)]
    return [thresholds(functools.partial(make, *pair), 1e-4, 30.0) for pair in pairs]


def _fitted(subject: Subject, seeds: Sequence[int]) -> list[Search]:
    truth: StackTruth = stack_truth(subject, seeds)
    found = []
    for sources in (1, 2, 3):

        def install(mask: tuple[bool, ...], own: Subject, sources: int = sources) -> Any:
            return stack_rule(own, FittedStack(mask, truth.gram, sources))

        found += masked(subject, install, f"{sources} kept, ")
    return found


HERMITE = {f"contraction {each}, ": hermite(each) for each in CONTRACTIONS}
RULES = (
    Method("FORA", "rule", "arXiv 2407.01425", functools.partial(_branches, 0, {"": taylor})),
    Method("TaylorSeer, order 1", "rule", "arXiv 2503.06923", functools.partial(_branches, 1, {"": taylor})),
    Method("TaylorSeer, order 2", "rule", "arXiv 2503.06923", functools.partial(_branches, 2, {"": taylor})),
    Method("HiCache, order 2", "rule", "arXiv 2508.16984", functools.partial(_branches, 2, HERMITE)),
    Method("HiCache, order 3", "rule", "arXiv 2508.16984", functools.partial(_branches, 3, HERMITE)),
    Method("stack-level fit", "rule", "least squares over kept residuals of the whole stack", _fitted, True),
    Method("TeaCache", "rule", "arXiv 2411.19108", _tea, True),
    Method("MagCache", "rule", "arXiv 2506.09045", _magnitudes, True),
)
