"""Maps of the sensitivity show the entries that the tables have for an interval."""

import math

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from planner_tables import make_sensitivity

from soda_compile.plans import notebook
from soda_compile.plans.figure_file import new_figure
from soda_compile.plans.plan import compute_all_plan
from soda_compile.plans.sensitivity_figure import draw_maps, interval_map, intervals

SENSITIVITY = make_sensitivity(steps=9, regions=3, width=6, scores=("drift",))


@pytest.mark.parametrize("operator", ["reuse", "forecast1", "forecast2", "prune.drift"])
def test_a_map_holds_the_error_at_the_end_of_an_interval(operator: str) -> None:
    shown = interval_map(SENSITIVITY, "cosine", operator, 3)
    for step in range(9):
        for number, region in enumerate(SENSITIVITY.info.regions):
            wanted = SENSITIVITY.error("cosine", operator, step, region, age=2, spacing=3, rate=0.5)
            assert shown[step, number] == wanted or (math.isnan(wanted) and math.isnan(shown[step, number]))


def test_intervals_are_those_that_were_measured() -> None:
    assert intervals(SENSITIVITY) == (2, 3, 5)
    assert intervals(make_sensitivity(steps=2, width=1)) == (2,)


def test_what_was_not_measured_is_left_white() -> None:
    least = make_sensitivity(steps=2, width=1)
    assert np.isnan(interval_map(least, "residual", "forecast1", 2)).all()
    figure = new_figure(4, 2)
    draw_maps(figure, least, "residual", "forecast1")
    assert "no forecast1" in figure.texts[0].get_text()


def test_danger_zones_enclose_the_worst_cells_and_nothing_else() -> None:
    figure = new_figure(8, 3)
    draw_maps(figure, SENSITIVITY, "residual", "reuse")
    whole = np.concatenate([interval_map(SENSITIVITY, "residual", "reuse", each).ravel() for each in (2, 3, 5)])
    worst = np.nanquantile(whole, 0.9)
    for axis, length in zip(figure.axes, (2, 3, 5), strict=False):
        marked = np.pad(worst < interval_map(SENSITIVITY, "residual", "reuse", length).T, 1)
        edges = (marked[1:] != marked[:-1]).sum() + (marked[:, 1:] != marked[:, :-1]).sum()
        (lines,) = (each for each in axis.collections if isinstance(each, LineCollection))
        assert len(lines.get_segments()) == edges


def test_notebooks_show_pictures_and_text_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compute_all_plan(("a<b", "c"), 3)
    assert plan._repr_html_().startswith('<img src="data:image/png;base64,')
    assert SENSITIVITY._repr_html_().startswith('<img src="data:image/png;base64,')
    monkeypatch.setattr(notebook, "drawn", lambda draw: None)
    assert "a&lt;b" in plan._repr_html_()
    assert "Sensitivity of 3 regions" in SENSITIVITY._repr_html_()
