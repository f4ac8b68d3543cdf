"""The step and the branch of guidance of denoiser calls, by name and by number."""

from soda_compile.runtime.call_counter import CallCounter
from soda_compile.runtime.clock import Clock


def places(counter: CallCounter, clock: Clock, *names: str | None) -> list[str]:
    """Step and branch of one call for each name."""
    found = []
    for name in names:
        clock.branch = name
        assert counter.place(clock) == counter.place(clock), "asking counts nothing"
        call = counter.count(clock)
        found.append(f"{call.step} {call.branch}")
    return found


def test_a_named_branch_keeps_its_name_whatever_the_order():
    counter, clock = CallCounter(1), Clock()
    clock.begin()
    assert places(counter, clock, "cond") == ["0 cond"]
    clock.advance()
    assert places(counter, clock, "uncond", "cond") == ["1 uncond", "1 cond"]
    clock.advance()
    assert places(counter, clock, "cond", "cond", "uncond") == ["2 cond", "2 cond 1", "2 uncond"]


def test_calls_without_a_name_are_numbered_in_each_step():
    counter, clock = CallCounter(1), Clock()
    clock.begin()
    assert places(counter, clock, None, None, None) == ["0 0", "0 1", "0 2"]
    clock.advance()
    assert places(counter, clock, None, "cond", None) == ["1 0", "1 cond", "1 1"]
    clock.begin()
    assert places(counter, clock, None) == ["0 0"]


def test_calls_advance_an_automatic_clock():
    counter, clock = CallCounter(2), Clock(automatic=True)
    clock.begin()
    assert places(counter, clock, *[None] * 5) == ["0 0", "0 1", "1 0", "1 1", "2 0"]
    clock.begin()
    assert places(counter, clock, None) == ["0 0"]


def test_a_clock_names_the_branch_while_it_is_called():
    clock = Clock()
    with clock.calling("cond"):
        with clock.calling("uncond"):
            assert clock.branch == "uncond"
        assert clock.branch == "cond"
    assert clock.branch is None
