"""Readings of drift: ratios, what trips the guard, and running errors."""

import math

import pytest
import torch

from soda_compile.runtime.drift import LEAST_EXPECTED, Drift, Newest, Reading, joined
from soda_compile.runtime.watchpoints import MOST_ELEMENTS, Watchpoint


def reading(step: int, error: float, expected: float | None = 0.1) -> Reading:
    return Reading.send(step, expected, torch.tensor(error, dtype=torch.float64))


def test_a_ratio_is_to_what_is_expected() -> None:
    assert reading(3, 0.25).ratio == pytest.approx(2.5)
    assert reading(3, 0.25, None).ratio is None
    assert reading(3, 0.002, 1e-9).ratio == pytest.approx(0.002 / LEAST_EXPECTED), "rounding is no drift"


def test_the_newest_anchor_decides() -> None:
    newest = Newest()
    assert newest.exceeding(2.0, 5) is None
    newest.add(reading(3, 0.25))
    assert newest.exceeding(2.0, 4) == pytest.approx(2.5)
    assert newest.exceeding(2.6, 4) is None
    assert newest.exceeding(2.0, 3) is None, "of an earlier trajectory"
    newest.add(reading(3, 0.1))
    assert newest.exceeding(2.0, 4) == pytest.approx(2.5), "any branch of guidance trips it"
    newest.add(reading(6, 0.9, None))
    assert newest.exceeding(2.0, 7) == pytest.approx(2.5), "nothing is known of this anchor"
    newest.add(reading(9, 0.1))
    assert newest.exceeding(2.0, 10) is None
    newest.add(reading(12, math.nan))
    assert math.isnan(newest.exceeding(2.0, 13) or 0.0)


def test_running_errors() -> None:
    drift = Drift()
    assert set(drift.as_dict().values()) == {0, None}
    for each in (reading(3, 0.3), reading(5, 0.1), reading(8, 0.2), reading(9, 0.4, None)):
        drift.add(each)
    found = drift.as_dict()
    assert found["readings"] == 4
    assert found["error"] == pytest.approx(0.25)
    assert (found["ratio"], found["last_ratio"], found["worst_ratio"]) == pytest.approx((2.0, 2.0, 3.0))


def test_two_graphs_of_one_model_add_up() -> None:
    one, other, none = Drift(), Drift(), Drift().as_dict()
    one.add(reading(3, 0.3))
    for step in range(3):
        other.add(reading(step, 0.1))
    both = joined(one.as_dict(), other.as_dict())
    assert both["readings"] == 4
    assert (both["error"], both["ratio"]) == pytest.approx((0.15, 1.5))
    assert (both["last_ratio"], both["worst_ratio"]) == pytest.approx((3.0, 3.0))
    assert joined(none, none) == none
    assert joined(none, one.as_dict()) == one.as_dict()


def test_a_watchpoint_is_the_error_of_all_cuts_together() -> None:
    torch.manual_seed(0)
    registers = list(torch.randn(6, 2, 3, 4).unbind())
    point = Watchpoint(((0, 1), (2, 3)), (4, 1), (3.0, -2.0), None)
    forecasts = point.forecasts(registers)
    before = [value.clone() for value in registers]
    registers[0].zero_()  # the step writes over what the forecast was made of
    missed = torch.cat([(3 * before[0] - 2 * before[1] - before[4]).flatten(),
                        (3 * before[2] - 2 * before[3] - before[1]).flatten()])  # fmt: skip
    size = torch.cat([before[4].flatten(), before[1].flatten()])
    torch.testing.assert_close(point.error(forecasts, registers), missed.norm() / size.norm())


@pytest.mark.parametrize("shape", [(2, 4096, 1024), (3 * 2**20,), (1, 3, 2**21)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_large_values_a_part_is_enough(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(shape, generator=generator).to(dtype)
    registers = [old, old + 0.1 * torch.randn(shape, generator=generator).to(dtype)]
    point = Watchpoint(((0,),), (1,), (1.0,), None)
    (forecast,) = point.forecasts(registers)
    assert forecast.numel() <= 1.01 * MOST_ELEMENTS
    exact = (registers[0].double() - registers[1].double()).norm() / registers[1].double().norm()
    assert float(point.error([forecast], registers)) == pytest.approx(float(exact), rel=0.02)
