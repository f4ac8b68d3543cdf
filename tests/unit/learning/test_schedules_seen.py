"""Generations are told apart, and their steps counted, by the numbers that a denoiser is called with."""

import pytest

from soda_compile.learning.beginnings import Beginnings
from soda_compile.learning.schedule import Call, Schedule, schedule_of

DOWN = (9.0, 6.0, 3.0, 0.0)


def begins(calls):
    told = Beginnings(set())
    return [told.begins(named(numbers)) for numbers in calls], told


def named(numbers):
    return {name: value for name, value in zip("abc", numbers, strict=False) if value is not None}


def at(*firsts, calls):
    return [number in firsts for number in range(calls)]


@pytest.mark.parametrize("timesteps", [DOWN, DOWN[::-1]])
def test_a_timestep_that_starts_again_begins_a_generation(timesteps):
    found, told = begins([(value,) for value in timesteps * 3])
    assert found == at(0, 4, 8, calls=12)
    assert told.timestep == "a"


def test_a_label_that_changes_between_branches_of_guidance_begins_nothing():
    calls = [(label, value) for value in DOWN for label in (3.0, 10.0)]
    found, told = begins(calls * 2)
    assert found == at(0, 8, calls=16)
    assert told.timestep == "b"


def test_another_label_in_the_next_generation_is_no_timestep():
    found, told = begins([(label, value) for label in (3.0, 5.0, 7.0, 2.0) for value in DOWN])
    assert found == at(0, 4, 8, 12, calls=16)
    assert told.timestep == "b"


def test_a_generation_that_was_left_half_way_ends_where_the_next_begins():
    assert begins([(9.0,), (6.0,), (3.0,), (9.0,), (6.0,)])[0] == at(0, 3, calls=5)


def test_a_counter_of_calls_is_no_timestep_once_that_has_started_again():
    found, told = begins([(float(number), value) for number, value in enumerate(DOWN * 2)])
    assert found == at(0, 4, calls=8)
    assert told.timestep == "b"


def test_numbers_that_come_in_another_order_are_the_same_numbers():
    told = Beginnings(set())
    found = [told.begins({"a": value}) for value in DOWN[:2]]
    found += [told.begins({"z": 5.0, "a": value}) for value in DOWN[2:]]
    assert found == at(0, calls=4)


@pytest.mark.parametrize("calls", [[()] * 5, [(None,)] * 5, [(1.0,)] * 5])
def test_without_a_timestep_nothing_begins_again(calls):
    found, told = begins(calls)
    assert found == at(0, calls=5)
    assert told.timestep is None


def test_steps_follow_the_timestep():
    assert schedule_of([Call({"a": value}) for value in DOWN], "a") == (Schedule(4, 1, DOWN), (0, 1, 2, 3))


def test_calls_with_one_timestep_are_branches_of_guidance():
    calls = [Call({"a": value}) for value in DOWN for _ in range(2)]
    assert schedule_of(calls, "a") == (Schedule(4, 2, DOWN), (0, 0, 1, 1, 2, 2, 3, 3))


def test_a_solver_that_calls_some_timesteps_twice_has_a_step_for_each_call():
    calls = [Call({"a": value}) for value in (9.0, 6.0, 6.0, 3.0, 3.0)]
    assert schedule_of(calls, "a") == (Schedule(5, 1), (0, 1, 2, 3, 4))


def test_whoever_opens_a_generation_may_tell_the_step():
    calls = [Call({}, 0), Call({}, 0), Call({}, 1), Call({}, 2)]
    assert schedule_of(calls, None) == (Schedule(3, 2), (0, 0, 1, 2))


def test_schedules_agree_but_for_rounding():
    schedule = Schedule(4, 1, DOWN)
    assert schedule.agrees([9.0000001, 6.0, 3.0, 0.0])
    assert not schedule.agrees([9.0, 6.0, 3.0])
    assert not schedule.agrees([9.0, 6.5, 3.0, 0.0])
