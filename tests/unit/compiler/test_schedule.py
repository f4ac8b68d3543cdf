"""Slot traffic against a naive simulation that keeps every computed value."""

import math
import random

import pytest

from soda_compile.compiler.schedule import Access, RegionMode, schedule_region
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE, Action, prune
from soda_compile.plans.coefficients import lagrange
from soda_compile.plans.pruning import Pruning

SYMBOLS = {action.symbol: action for action in (COMPUTE, REUSE, FORECAST1, FORECAST2)}


def ring_size(row):
    """Copies of the region's cuts that must be kept."""
    return max((place + 1 for access in row for place in access.places), default=0)


def actions(row: str) -> list[Action]:
    return [SYMBOLS[symbol] for symbol in row]


def random_row(generator: random.Random) -> str:
    """A valid row: every action finds the computed steps that it reads."""
    row, computed = "C", 1
    share = generator.random()
    for _ in range(generator.randrange(1, 25)):
        allowed = ["r", "1", "2"][:computed]
        row += "C" if generator.random() < share else generator.choice(allowed)
        computed += row[-1] == "C"
    return row


def simulate(row: list[Action], accesses: tuple[Access, ...]) -> list[list[int]]:
    """Which steps' values each access reads out of the ring."""
    ring: dict[int, int] = {}
    seen = []
    for step, (action, access) in enumerate(zip(row, accesses, strict=True)):
        assert access.mode.action == action
        if action.kind == "compute":
            assert len(access.places) == access.mode.store
            for place in access.places:
                ring[place] = step
            seen.append([])
        else:
            assert not access.mode.store
            seen.append([ring[place] for place in access.places])
    return seen


def naive_reads(row: list[Action]) -> list[list[int]]:
    """The last computed steps, newest first, as many as each action wants."""
    return [
        [earlier for earlier in reversed(range(step)) if row[earlier].kind == "compute"][: action.history]
        for step, action in enumerate(row)
    ]


def test_random_rows_read_the_values_that_they_should():
    generator = random.Random(0)
    for _ in range(2000):
        text = random_row(generator)
        row = actions(text)
        accesses = schedule_region(row)
        assert simulate(row, accesses) == naive_reads(row), text
        for step, access in enumerate(accesses):
            points = naive_reads(row)[step]
            expected = lagrange(points, step) if row[step].kind == "forecast" else ()
            assert access.coefficients == expected, text


def test_nothing_is_stored_that_is_not_read():
    generator = random.Random(1)
    for _ in range(500):
        text = random_row(generator)
        row = actions(text)
        read = {source for sources in naive_reads(row) for source in sources}
        stored = {step for step, access in enumerate(schedule_region(row)) if access.mode.store}
        assert stored == read, text


def test_the_ring_is_no_larger_than_the_longest_history():
    generator = random.Random(2)
    for _ in range(500):
        row = actions(random_row(generator))
        assert ring_size(schedule_region(row)) <= max(action.history for action in row)


@pytest.mark.parametrize(("row", "size"), [("CCCC", 0), ("Crrr", 1), ("CrCr", 1), ("CC1C1", 2), ("CCC2r", 3)])
def test_ring_sizes(row: str, size: int):
    assert ring_size(schedule_region(actions(row))) == size


def test_a_row_written_out():
    assert schedule_region(actions("CC1C1")) == (
        Access(RegionMode(COMPUTE, store=True), (0,)),
        Access(RegionMode(COMPUTE, store=True), (1,)),
        Access(RegionMode(FORECAST1), (1, 0), (2.0, -1.0)),
        Access(RegionMode(COMPUTE, store=True), (0,)),
        Access(RegionMode(FORECAST1), (0, 1), (1.5, -0.5)),
    )


def test_a_row_that_only_computes_stores_nothing():
    accesses = schedule_region(actions("CCC"))
    assert accesses == (Access(RegionMode(COMPUTE)),) * 3
    assert all(access.mode.computes for access in accesses)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_lagrange_is_exact_for_polynomials(degree: int):
    generator = random.Random(degree)
    for _ in range(50):
        points = generator.sample(range(-20, 20), degree + 1)
        at = generator.randrange(-20, 40)
        terms = [generator.uniform(-1, 1) for _ in range(degree + 1)]
        weights = lagrange(points, at)

        def value(x: float, terms: list[float] = terms) -> float:
            return sum(term * x**power for power, term in enumerate(terms))

        forecast = sum(weight * value(point) for weight, point in zip(weights, points, strict=True))
        scale = sum(abs(weight * value(point)) for weight, point in zip(weights, points, strict=True))
        assert math.isclose(forecast, value(at), abs_tol=1e-12 * max(scale, 1))
        assert math.isclose(sum(weights), 1, abs_tol=1e-12 * sum(map(abs, weights)))


def test_lagrange_gives_the_value_itself_at_a_point():
    assert lagrange([3, 1, 0], 1) == (0.0, 1.0, 0.0)


def prunes(row: str) -> tuple[Action, ...]:
    """As ``actions``; "p" prunes half the tokens."""
    return tuple(prune(0.5) if symbol == "p" else actions(symbol)[0] for symbol in row)


def test_a_prune_overwrites_what_it_reads_where_nothing_else_needs_it():
    row = schedule_region(prunes("CpprC"), Pruning("drift"))
    assert [access.places for access in row] == [(0,), (0,), (0,), (0,), ()]
    assert [access.mode.store for access in row] == [True, True, True, False, False]
    assert [access.mode.in_place for access in row] == [False, True, True, False, False]


def test_a_forecast_reads_computed_values_whatever_was_pruned():
    row = schedule_region(prunes("CCp1r"), Pruning("drift"))
    assert row[2].places == (1, 2)  # reads the newest computed value, writes a place of its own
    assert not row[2].mode.in_place
    assert row[3].places == (1, 0)
    assert row[4].places == (2,)
    assert ring_size(row) == 3


def test_a_mixture_that_nothing_reads_is_not_stored():
    row = schedule_region(prunes("CpC"), Pruning("drift"))
    assert (row[1].places, row[1].mode.store) == ((0,), False)


def test_tokens_are_tracked_only_where_a_later_prune_scores_against_them():
    row = schedule_region(prunes("CpprCrC"), Pruning("drift"))
    assert [access.mode.track for access in row] == [True, True, False, False, False, False, False]
    taken = schedule_region(prunes("Cp"), Pruning("drift"), ("own", "take"))
    assert not taken[0].mode.track
