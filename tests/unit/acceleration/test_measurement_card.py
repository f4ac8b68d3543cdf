"""The card of a measurement: front matter that the hub reads, and tables of what is true."""

import json
import re
from dataclasses import replace

import pytest
from planner_tables import make_sensitivity

from soda_compile.acceleration.measurement_card import card, picture
from soda_compile.acceleration.measurement_folder import Measurement, Verified
from soda_compile.acceleration.setting import Setting
from soda_compile.planner import plan as make_plan

TABLE = make_sensitivity(1)
PLANS = {"transformer": make_plan(TABLE, anchors=3)}
SETTING = Setting(
    "Pipeline", {"transformer": "a"}, {"transformer": "A"}, "Euler 1", 6, (6.0, 5, 4, 3, 2, 1), {"on": True}
)
MEASURED = Measurement(SETTING, {"transformer": TABLE}, 'owner/mo: "del"')


def front_matter(text: str) -> str:
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_front_matter_is_yaml_whatever_names_are() -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(front_matter(card(MEASURED, PLANS, (), pictured=False)))["base_model"] == MEASURED.model
    text = card(replace(MEASURED, model=None), PLANS, (), pictured=False)
    assert "base_model" not in yaml.safe_load(front_matter(text))
    assert json.dumps("soda-compile") in front_matter(text)


def test_errors_are_those_that_were_seen() -> None:
    assert "No generation was run to compare" in card(MEASURED, PLANS, (), pictured=False)
    text = card(MEASURED, PLANS, [Verified("speedup-2.0", (4, 5), (0.01, 0.04))], pictured=True)
    assert "| speedup-2.0 | 2.50% | 4.00% | 4, 5 |" in text
    assert f"| transformer | 3 of 6 | {PLANS['transformer'].flop_ratio:.1%} |" in text
    assert "| on | True |" in text
    assert "](plan.png)" in text


def test_the_picture_is_a_png() -> None:
    pytest.importorskip("matplotlib")
    image = picture({**PLANS, "transformer_2": PLANS["transformer"]})
    assert image is not None
    assert image.startswith(b"\x89PNG")
