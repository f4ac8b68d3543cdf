"""The choice of the tokens that a pruned region computes."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from soda_compile.errors import PlanError

Score = Literal["feature_mean", "drift", "random"]
Share = Literal["region", "block"]
# An index is picked for one region alone, picked and kept for later ones, or taken from an earlier one.
IndexUse = Literal["own", "keep", "take"]
SCORES: tuple[str, ...] = get_args(Score)


@dataclass(frozen=True)
class Pruning:
    """A choice of tokens: those with the highest score are computed.

    Attributes:
        score: "feature_mean" (mean over the features of the region's input, SODA, arXiv 2603.07057), "drift" (norm
            of the change of that input since the token was last computed) or "random" (the control, drawn anew for
            each step).
        staleness: weight of an additive term, the steps since the token was last computed; scores are divided by
            their mean over tokens first.
        share: "region" scores each region by itself; "block" lets all regions of a block that prune the same
            number of the same tokens take the choice of the first; a number n does so for n consecutive blocks.
        groups: in how many equal parts a batch falls that share one choice, sample by sample: 2 for batched guidance.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    score: Score = "drift"
    staleness: float = 0.0
    share: Share | int = "region"
    groups: int = 1

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise PlanError(f"score {self.score!r} is not known; use one of {', '.join(SCORES)}")
        if not 0 <= self.staleness < float("inf"):
            raise PlanError(f"staleness is {self.staleness!r}; it must be finite and not negative")
        object.__setattr__(self, "staleness", float(self.staleness))
        if self.share not in get_args(Share) and not _is_count(self.share):
            raise PlanError(f"share is {self.share!r}; use 'region', 'block' or a number of consecutive blocks")
        if not _is_count(self.groups):
            raise PlanError(f"groups is {self.groups!r}; it must be at least 1")

    def __str__(self) -> str:
        stale = f" + {self.staleness:g} x staleness" if self.staleness else ""
        return f"tokens by {self.score}{stale}"


def random_scores(step: int, region: int, tokens: int) -> NDArray[np.float32]:
    """Return uniform scores [tokens], fresh for each step and region, the same in every trajectory."""
    return np.random.default_rng((step, region)).random(tokens, dtype=np.float32)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
