"""Ranks that share a model agree on its plan before the first step: with another they would wait for ever."""

import threading
from collections import Counter
from collections.abc import Iterable

import torch.distributed as dist

from soda_compile.errors import DistributedError
from soda_compile.torch_internals.process_groups import notes, ranks_of

_lock = threading.Lock()
_asked: Counter[tuple[int, ...]] = Counter()  # how often ranks have asked each other


def require_same_plan(groups: Iterable[str], plan: str) -> None:
    """Check that all ranks of the groups that a graph names follow the same plan.

    They leave notes in the store that they met in, not messages in their groups: a rank that runs the model in another
    way is in a collective of its own there.

    Args:
        groups: Names of process groups; none if the graph sends nothing.
        plan: What this rank follows, such as a plan's digest.

    Raises:
        DistributedError: Some follow another plan, or do not say what they follow before the timeout of
            ``init_process_group``.
    """
    with _lock:
        numbers = {}
        for ranks in sorted({ranks_of(group) for group in groups}):
            _asked[ranks] += 1
            numbers[ranks] = _asked[ranks]
    places = {ranks: f"soda_compile/{'-'.join(map(str, ranks))}/{number}/" for ranks, number in numbers.items()}
    for place in places.values():  # all before the first wait
        notes().set(f"{place}{dist.get_rank()}", plan)
    for ranks, place in places.items():
        _require(place, ranks)


def _require(place: str, ranks: tuple[int, ...]) -> None:
    store = notes()
    try:
        store.wait([f"{place}{rank}" for rank in ranks])
    except RuntimeError as error:
        silent = [rank for rank in ranks if not store.check([f"{place}{rank}"])]
        raise DistributedError(
            f"of the ranks {list(ranks)}, which share this model, {silent} did not say within the timeout of "
            "init_process_group which plan they follow: all must compile it with backend 'soda' and call it alike"
        ) from error
    plans = {rank: store.get(f"{place}{rank}").decode() for rank in ranks}
    if len(set(plans.values())) > 1:
        listed = ", ".join(f"rank {rank}: {plan}" for rank, plan in plans.items())
        raise DistributedError(
            f"the ranks that share this model follow different plans ({listed}), so they would wait for each other in "
            "different steps. Let one rank plan for all, soda_compile.plan(sensitivity, ..., process_group=group), or "
            "load one file on all"
        )
