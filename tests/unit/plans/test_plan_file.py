import json
import os

import numpy as np
import pytest
from random_plans import random_plan

from soda_compile.errors import PlanError
from soda_compile.plans.actions import COMPUTE, FORECAST2, REUSE
from soda_compile.plans.plan import Plan
from soda_compile.storage import files


@pytest.fixture
def plan():
    made = random_plan(3, ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn"], 12, fingerprint="abc")
    return Plan(
        **{name: getattr(made, name) for name in ("fingerprint", "regions", "actions")},
        timesteps=tuple(np.linspace(999, 0, 12)),
        timestep_input="timestep",
        scheduler="DDIMScheduler",
        scheduler_digest="0123",
        guidance=1.5,
        calls_per_step=2,
        flop_ratio=0.4,
        predicted_error=0.1234567890123,
        method={"operator": "auto", "anchors": 5, "paper": False, "speedup": None, "tolerance": 0.5},
    )


def test_round_trip(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    loaded = Plan.load(path)
    assert loaded == plan
    for name in Plan.__dataclass_fields__:
        assert getattr(loaded, name) == getattr(plan, name)
    for seed in range(50):
        other = random_plan(seed, ["a"], 1 + seed % 20)
        assert Plan.from_json(other.to_json()) == other


def test_the_file_is_legible(plan):
    data = json.loads(plan.to_json())
    assert data["schema"] == "soda-plan/1"
    assert data["actions"] == dict(zip(plan.regions, plan.rows, strict=True))
    assert data["legend"]["r"] == {"kind": "reuse", "order": 0}


def test_the_legend_decides():
    data = json.loads(random_plan(0, ["a"], 1).to_json())
    data |= {"steps": 5, "actions": {"a": "xyxxz"}}
    data["legend"] = {"x": {"kind": "compute"}, "y": {"kind": "reuse"}, "z": {"kind": "forecast", "order": 2}}
    loaded = Plan.from_json(json.dumps(data))
    assert loaded.actions == ((COMPUTE, REUSE, COMPUTE, COMPUTE, FORECAST2),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "soda-plan/2", "new": 1}, r"schema 'soda-plan/2' is not known; this version reads 'soda-plan/1'"),
        ({"schema": None}, "schema None is not known"),
        ({"extra": 1}, "extra: Extra inputs"),
        ({"steps": "12"}, "steps: Input should be a valid integer"),
        ({"steps": 11}, "has 12 actions for 11 steps"),
        ({"guidance": "high"}, "guidance: Input should be a valid number"),
        ({"guidance": True}, "guidance: Input should be a valid number"),
        ({"guidance": float("nan")}, "guidance: Input should be a finite number"),
        ({"timesteps": [1.0]}, "1 timesteps for 12 steps"),
        ({"timesteps": 5}, "timesteps: Input should be a valid array"),
        ({"fingerprint": None}, "fingerprint: Input should be a valid string"),
        ({"method": {"a": [1]}}, "method.a"),
        ({"actions": {}}, "needs a region and a step"),
        ({"actions": {"a": 5}}, "actions.a: Input should be a valid string"),
        ({"actions": {"a": "C" * 11 + "?"}}, r"'a' has the symbol '\?', which is not in the legend"),
        ({"actions": {"a": "r" * 12}}, "'a', step 0"),
        ({"legend": {"C": {"kind": "skip", "order": 0}}}, r"legend.C.kind: Input should be 'compute'"),
        ({"legend": {"C": {"kind": "compute", "order": 0, "share": 0.5}}}, "legend.C.share: Unexpected keyword"),
    ],
)
def test_refuses_a_wrong_file(plan, tmp_path, change, message):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(plan.to_json()) | change))
    with pytest.raises(PlanError, match=message) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("key", ["schema", "fingerprint", "steps", "legend", "actions"])
def test_refuses_a_file_without_a_key_it_needs(plan, key):
    data = json.loads(plan.to_json())
    del data[key]
    with pytest.raises(PlanError, match=f"{key}: Field required"):
        Plan.from_json(json.dumps(data))


def test_refuses_a_repeated_region(plan):
    text = plan.to_json().replace('"blocks.1.attn"', '"blocks.0.attn"')
    with pytest.raises(PlanError, match=r"repeated key 'blocks.0.attn'"):
        Plan.from_json(text)


@pytest.mark.parametrize("text", ["", "null", "[]", "3", "{}", "{" * 100_000, "[" * 100_000, b"\xff\xfe", "plan"])
def test_refuses_other_text(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_refuses_every_truncation(plan):
    data = plan.to_json().encode()
    for length in range(len(data.rstrip())):
        with pytest.raises(PlanError):
            Plan.from_json(data[:length])


def test_a_flipped_byte_never_escapes(plan):
    """A digit may turn into another digit; everything else is refused, with the project's own error."""
    data, survived = plan.to_json().encode(), 0
    for position in range(len(data)):
        for mask in (0x01, 0x80):
            changed = bytearray(data)
            changed[position] ^= mask
            try:
                survived += isinstance(Plan.from_json(bytes(changed)), Plan)
            except PlanError:
                continue
    assert survived < len(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere.json: cannot read the plan: No such file"):
        Plan.load(tmp_path / "nowhere.json")
    with pytest.raises(PlanError, match="cannot read the plan"):
        Plan.load(tmp_path)


def test_an_interrupted_save_leaves_the_old_file(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    plan.save(path)

    def fail(*_):
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                random_plan(0, ["a"], 3).save(path)
        assert Plan.load(path) == plan
        assert os.listdir(tmp_path) == ["plan.json"]
