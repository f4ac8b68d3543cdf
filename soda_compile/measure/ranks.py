"""Ranks that measure together: some run generations of their own, some share each generation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from soda_compile.distributed.group import Alone, Group, Reduction
from soda_compile.errors import OptionError
from soda_compile.plans.sensitivity import Sensitivity, merge

_DOING = "calibration"


@dataclass(frozen=True, eq=False)
class Ranks:
    """The ranks that a measurement is spread over.

    Attributes:
        apart: Ranks that run generations of their own, whose measurements are merged; None for this one alone.
        together: Ranks that share each generation, each with a part of every value; None for this one alone.
    """

    apart: Group | None = None
    together: Group | None = None

    @classmethod
    def of(cls, process_group: Any, model_group: Any) -> "Ranks":
        """Take the groups that the user named.

        Raises:
            OptionError: One is none, or they have more than this process in common.
        """
        apart = None if process_group is None else Group.of(process_group, "process_group")
        together = None if model_group is None else Group.of(model_group, "model_group")
        if apart and together and len(both := set(apart.ranks) & set(together.ranks)) > 1:
            raise OptionError(
                f"the ranks {sorted(both)} are in process_group, whose ranks run generations of their own, and in "
                "model_group, whose ranks share each generation; a rank has one of these relations to another"
            )
        return cls(apart, together)

    @property
    def reduction(self) -> Reduction:
        """Return what adds up the parts of one generation."""
        return self.together or Alone()

    @property
    def first(self) -> bool:
        """Return whether this process is the first in its groups: it alone tells the user how it goes."""
        return not any(group.rank for group in (self.apart, self.together) if group)

    def require_same(self, arguments: Mapping[str, Any]) -> None:
        """Check that all ranks were called with the same arguments, before any work.

        Raises:
            DistributedError: Naming what differs.
        """
        for group in (self.together, self.apart):
            if group is not None:
                group.require_same(arguments, _DOING)

    def share_of(self, seeds: Sequence[int]) -> Sequence[int]:
        """Return the seeds of this rank's generations; in the order of the ranks these are all.

        Raises:
            OptionError: There are fewer than ranks.
        """
        if self.apart is None:
            return seeds
        size, rank = self.apart.size, self.apart.rank
        if len(seeds) < size:
            raise OptionError(f"the generations, {len(seeds)}, are fewer than the {size} ranks; pass one for each")
        return seeds[rank * len(seeds) // size : (rank + 1) * len(seeds) // size]

    def merged(self, measure: Callable[[], Sensitivity]) -> Sensitivity:
        """Measure on each rank, and return on each the same: what all measured.

        Raises:
            DistributedError: Another rank failed, ended or gave no answer in time.
        """
        if self.apart is None:
            return self._measured(measure)
        return reduce(merge, self.apart.share(lambda: self._measured(measure), _DOING))

    def _measured(self, measure: Callable[[], Sensitivity]) -> Sensitivity:
        if self.together is None:
            return measure()
        # An error is raised at once: the others are inside the model, and hear of nothing but its collectives.
        measured = measure()
        return self.together.from_first(lambda: measured, _DOING)
