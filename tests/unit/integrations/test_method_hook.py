"""A method that is replaced on one object is replaced on no copy of it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from soda_compile.integrations.diffusers.method_hook import MethodHook


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def up(self, by: int = 1) -> int:
        self.count += by
        return self.count


class Reduced(Counter):
    """Says itself how it is pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Reduced, (), {"count": self.count}


class Slotted(Counter):
    __slots__ = ("slot",)

    def __init__(self) -> None:
        super().__init__()
        self.slot = 3


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("kind", [Counter, Reduced])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_copies_have_the_method_itself(kind: type[Counter], duplicate: Callable[[Any], Any]) -> None:
    counter = kind()
    hook = MethodHook(counter.up, lambda by=1: 100).attach()
    copied = duplicate(counter)
    assert counter.up() == 100
    assert (copied.up(2), copied.count, counter.count) == (2, 2, 0)
    assert {"count"} <= set(vars(copied)) <= {"count", "up"}
    hook.detach()
    assert vars(counter) == {"count": 0}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickled])
def test_slots_are_copied_too(duplicate: Callable[[Any], Any]) -> None:
    counter = Slotted()
    MethodHook(counter.up, lambda by=1: 100).attach()
    copied = duplicate(counter)
    assert (copied.slot, copied.up()) == (3, 1)


def test_the_hook_itself_is_copied_as_the_method() -> None:
    counter = Counter()
    hook = MethodHook(counter.up, lambda by=1: 100).attach()
    assert copy.copy(hook)() == 1
    assert pickled(hook)() == 2
    assert counter.count == 1
    assert pickled({"held": hook})["held"]() == 2


def test_two_hooks_come_and_go_alone() -> None:
    counter = Counter()
    first = MethodHook(counter.up, lambda by=1: 100).attach()
    second = MethodHook(counter.__repr__, lambda: "hooked").attach()
    first.detach()
    assert vars(copy.copy(counter)) == {"count": 0}
    second.detach()
    assert vars(counter) == {"count": 0}
