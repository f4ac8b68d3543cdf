"""Notes that ranks leave for each other: this process is rank 0, and the others' notes are put there before."""

from collections import Counter
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from soda_compile.distributed import agreement
from soda_compile.distributed.agreement import require_same_plan
from soda_compile.errors import DistributedError

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no process groups")

GROUPS = {"pair": (0, 1), "all": (0, 1, 2)}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """The store that all ranks reach."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    monkeypatch.setattr(agreement, "notes", lambda: store)
    monkeypatch.setattr(agreement, "ranks_of", GROUPS.__getitem__)
    monkeypatch.setattr(agreement, "_asked", Counter())
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    return store


def test_a_graph_that_sends_nothing_asks_nobody(store: dist.Store):
    require_same_plan([], "plan")
    assert not store.num_keys()


def test_equal_plans_each_time_they_are_asked(store: dist.Store):
    for number in (1, 2):
        store.set(f"soda_compile/0-1/{number}/1", "plan")
        require_same_plan(["pair"], "plan")


def test_different_plans_are_listed_by_rank(store: dist.Store):
    store.set("soda_compile/0-1/1/1", "no plan")
    with pytest.raises(DistributedError, match=r"follow different plans \(rank 0: plan, rank 1: no plan\)"):
        require_same_plan(["pair"], "plan")


def test_a_silent_rank_is_named_after_the_timeout(store: dist.Store):
    store.set("soda_compile/0-1-2/1/1", "plan")
    with pytest.raises(DistributedError, match=r"of the ranks \[0, 1, 2\], which share this model, \[2\] did not say"):
        require_same_plan(["all"], "plan")


def test_all_groups_of_a_mesh_have_the_note_before_the_first_is_waited_for(store: dist.Store):
    with pytest.raises(DistributedError):
        require_same_plan(["pair", "all"], "plan")
    assert store.check(["soda_compile/0-1/1/0", "soda_compile/0-1-2/1/0"])
