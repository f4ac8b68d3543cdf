"""The page needs nothing else, says what it was given, and looks as it should in a browser."""

import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread, imsave
from planner_tables import make_profile, make_sensitivity

import soda_compile
from soda_compile.acceleration.measurement_folder import Verified
from soda_compile.errors import OptionError, PlanError
from soda_compile.planner import Goal
from soda_compile.report.page import page, picture
from soda_compile.report.steps import step_costs
from soda_compile.report.subject import Pair, Subject, read_pairs
from soda_compile.report.tradeoff import tradeoff_of

MADE = make_sensitivity(steps=8, regions=3, width=7)
KEPT = ("residual.reuse", "residual.forecast1")  # a picture each
SENSITIVITY = replace(MADE, **{name: {key: getattr(MADE, name)[key] for key in KEPT} for name in ("mean", "variance")})
PLAN = soda_compile.plan(SENSITIVITY, Goal(anchors=3))


class Addresses(HTMLParser):
    """Collects what a page refers to, and the ids and labels of its choices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []
        self.chosen: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.found += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag == "input":
            self.ids.append(str(named["id"]))
            self.chosen += [str(named["id"])] if "checked" in named else []


def read(text: str) -> Addresses:
    found = Addresses()
    found.feed(text)
    return found


def test_a_page_holds_its_pictures_and_shows_one_map() -> None:
    text = page(Subject(SENSITIVITY, PLAN))
    found = read(text)
    assert found.found
    assert all(address.startswith("data:image/png;base64,") for address in found.found)
    assert len(found.ids) == len(SENSITIVITY.mean)
    assert len(found.chosen) == 1
    assert "@import" not in text
    assert "3 of 8" in text
    assert "No generation by a plan is on record" in text


def test_names_are_text() -> None:
    named = replace(SENSITIVITY, info=replace(SENSITIVITY.info, scheduler="<b>x</b>"))
    assert "<b>x</b>" not in (text := page(Subject(named)))
    assert "&lt;b&gt;x" in text


def test_what_was_verified_is_told_beside_what_was_predicted() -> None:
    text = page(Subject(SENSITIVITY, PLAN, verified=((PLAN, Verified("speedup-2", (7, 8), (0.01, 0.03))),)))
    for expected in ("speedup-2", f"{PLAN.predicted_error:.4g}", "2.00%", "3.00%", "7, 8"):
        assert expected in text


def test_the_chosen_plan_lies_on_the_curve_of_the_best_anchors() -> None:
    found = tradeoff_of(Subject(SENSITIVITY, PLAN))
    assert found.chosen in found.planned
    even = {each.anchors: each.error for each in found.even}
    assert all(each.error <= even[each.anchors] * (1 + 1e-9) for each in found.planned if each.anchors in even)


def test_steps_cost_what_the_plan_costs() -> None:
    found = step_costs(Subject(SENSITIVITY, PLAN), PLAN)
    assert PLAN.flop_ratio is not None
    assert sum(found.steps) == pytest.approx(PLAN.flop_ratio * 8 * found.full)
    timed = step_costs(Subject(SENSITIVITY, PLAN, make_profile(SENSITIVITY)), PLAN)
    assert (timed.unit, found.memory_bytes) == ("ms", None)
    assert timed.memory_bytes


def test_a_picture_is_one() -> None:
    for subject in (Subject(SENSITIVITY, PLAN), Subject(SENSITIVITY)):
        assert picture(subject).startswith(b"\x89PNG")


def test_a_plan_of_other_steps_is_refused() -> None:
    with pytest.raises(PlanError, match="3 regions and 8 steps, but the sensitivity has 3 and 6"):
        Subject(make_sensitivity(steps=6, regions=3), PLAN)


def test_samples_are_compared_in_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = [tmp_path / name for name in ("original", "accelerated")]
    for folder in folders:
        folder.mkdir()
        imsave(folder / "0.png", rng.random((8, 8, 3)))
        imsave(folder / "1.png", np.full((8, 8, 3), 0.5))
    changed, same = read_pairs(*folders)
    assert same.relative_error == 0 < changed.relative_error
    pictures = [len(read(page(Subject(SENSITIVITY, pairs=pairs))).found) for pairs in ((), (changed, same))]
    assert pictures[1] == pictures[0] + 1
    imsave(folders[1] / "1.png", np.zeros((4, 8, 3)))
    with pytest.raises(OptionError, match=r"is 8 x 8 and .* 8 x 4"):
        read_pairs(*folders)
    (folders[1] / "0.png").unlink()
    with pytest.raises(OptionError, match=r"0\.png cannot be read"):
        read_pairs(*folders)


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("there is no Chromium")


def test_a_browser_shows_the_plan_the_chosen_map_and_the_samples(browser: str, tmp_path: Path) -> None:
    red, blue = (np.broadcast_to(np.array(colour, dtype=float), (8, 8, 3)) for colour in ((1, 0, 0), (0, 0, 1)))
    shown = screenshot(page(Subject(SENSITIVITY, PLAN, pairs=(Pair("0", red, blue),))), browser, tmp_path)
    assert share(shown, "#1f3a5f") > 0.01  # what the plan computes, and the chosen tab
    assert share(shown, "#ff0000") > 0.001  # the original
    bare = screenshot(page(Subject(SENSITIVITY)), browser, tmp_path)
    assert share(bare, "#ff0000") == 0
    hidden = page(Subject(SENSITIVITY)).replace(" checked", "")
    # no map is shown without a choice
    assert (screenshot(hidden, browser, tmp_path) < 1).mean() < 0.8 * (bare < 1).mean()


def screenshot(text: str, browser: str, folder: Path) -> np.ndarray:
    (folder / "page.html").write_text(text)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,2200"]
    command += [f"--screenshot={folder / 'shot.png'}", (folder / "page.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.asarray(imread(folder / "shot.png"))[..., :3]


def share(image: np.ndarray, colour: str) -> float:
    """Share of an image that has a colour."""
    wanted = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return float((np.abs(image - wanted).max(axis=-1) < 0.01).mean())
