"""The pieces of the benchmark suite that could go wrong without anybody noticing."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from thorough import gated

import soda_compile
from benchmarks.suite import bars, table
from benchmarks.suite.configs import SCALED_DOWN, TRUE_SIZE, Config, _dit
from benchmarks.suite.masks import anchor_steps, computed
from benchmarks.suite.methods import methods
from benchmarks.suite.models import make_inputs, make_model
from benchmarks.suite.plans import plan_for
from benchmarks.suite.results import fastest_plain, figures, round_ratio
from benchmarks.suite.rounds import follows

PARAMETERS = {  # billions, as published
    "dit": 0.675, "dit512": 0.675, "pixart": 0.61, "flux": 11.9, "sd3": 8.06, "wan": 1.42, "wan14b": 14.3,
    "cogvideox": 5.57, "hunyuan": 12.8,
}  # fmt: skip


@pytest.mark.parametrize("config", gated(*SCALED_DOWN, others=TRUE_SIZE), ids=lambda config: config.title)
def test_configurations_are_those_of_the_checkpoints_and_can_be_called(config):
    model = make_model(config, "meta", torch.bfloat16)
    count = sum(parameter.numel() for parameter in model.parameters())
    if config in TRUE_SIZE:
        # diffusers gives each block of DiT an embedding of its own, which the original shares.
        own = {"dit": 0.08, "dit512": 0.08}.get(config.name, 0.0)
        assert count / 1e9 == pytest.approx(PARAMETERS[config.name] + own, rel=0.01)
    inputs = make_inputs(config, "meta", torch.bfloat16, 2)
    assert len(inputs) == 2
    with torch.no_grad():
        assert model(**inputs[0])[0].shape[0] == config.batch


def test_nothing_stays_zero_and_seeds_give_the_same_weights():
    config = Config("dit", "", "dit", "DiTTransformer2DModel", _dit(8, 2, 16, 2), 2, (4, 8, 8))
    first, second = (make_model(config, "cpu", torch.float32) for _ in range(2))
    assert all(parameter.any() for parameter in first.parameters())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not first.training


def test_masks():
    assert anchor_steps(12, 4) == (0, 2, 6, 10)
    assert anchor_steps(1, 4) == (0,)
    assert computed(4, 2) == (True, False, True, False)
    assert computed(3, None) == (True, True, True)
    with pytest.raises(ValueError, match="interval 0"):
        anchor_steps(12, 0)


def test_plans_follow_the_mask():
    config = Config("dit", "", "dit", "DiTTransformer2DModel", _dit(8, 2, 16, 2), 2, (4, 8, 8))
    structure = soda_compile.inspect(
        make_model(config, "cpu", torch.float32), **make_inputs(config, "cpu", torch.float32, 1)[0]
    )
    mask = computed(7, 3)
    rows = {kind: plan_for(structure, mask, kind).rows[0] for kind in ("reuse", "forecast", "prune")}
    assert rows["reuse"] == "CrCrrCr"
    assert rows["forecast"] == "CrC11C1"
    assert rows["prune"].replace(rows["prune"][1], "p") == "CpCppCp"
    assert plan_for(structure, mask, "forecast").anchors == (0, 2, 5)
    with pytest.raises(ValueError, match="'guess'"):
        plan_for(structure, mask, "guess")


def row(name, seconds, group="soda", flops=(10, 1, 10, 1), interval=2, **more):
    rounds = [
        {"round": number, "seconds": value, "steps": [value / 4] * 4, "graphs_compiled": 0}
        for number, value in enumerate(seconds)
    ]
    return {
        "name": name,
        "group": group,
        "interval": interval,
        "mode": None,
        "notes": [],
        "flops": list(flops),
        "rounds": rounds,
        **more,
    }


PLAIN = row("torch.compile", (4.0, 4.4, 4.0), "torch.compile", (10, 10, 10, 10), None, cold_seconds=20.0)
PLAIN["profile"] = {"anchor": {"graph_calls": 1, "kernels": 120, "launches": 7}}


def test_figures():
    found = figures(row("soda, reuse, interval 4", (2.0, 2.0, 4.0)), PLAIN)
    assert found.speedup == 2.0  # the median of 2, 2.2 and 1
    assert found.flop_ratio == 0.55
    assert found.efficiency == pytest.approx(0.5 / 0.45)
    assert found.other_ms == 500.0
    assert figures(PLAIN, PLAIN).efficiency is None
    assert fastest_plain([PLAIN, row("torch.compile, fast", (1.0,), "torch.compile")])["name"] == "torch.compile, fast"
    late = row("late", (1.0, 1.0))
    late["rounds"][0]["round"] = 1
    late["rounds"][1]["round"] = 7
    assert round_ratio(PLAIN, late) == 4.4  # only rounds that both have
    late["rounds"][0]["round"] = 8
    assert round_ratio(PLAIN, late) == 4.0


def test_the_mask_is_checked_by_flops():
    assert follows([10, 1, 10, 4], 2)
    assert not follows([10, 1, 10, 6], 2)
    assert not follows([10, 10, 10, 1], 2)
    assert follows([10, 10, 10], None)


REPORT = {
    "about": {"device": "a machine", "type": "cpu", "versions": {"torch": "2"}, "seeds": {"weights": 0, "inputs": 1}},
    "models": {
        "flux": {
            "title": "FLUX", "batch": 1, "large": True,
            "settings": {"steps": 4, "rounds": 3, "threads": 1, "dtype": "float32"},
            "rows": [
                PLAIN,
                row("soda, everything", (4.0, 4.4, 4.0), flops=(10, 10, 10, 10), interval=None),
                row("soda, reuse, interval 4", (2.0, 2.0, 2.0)),
                row("soda, forecast, interval 4", (3.0, 3.0, 3.0), cold_seconds=10.0, warm_seconds=3.0),
                row("soda ahead, everything", (3.6, 3.6, 3.6), flops=(10, 10, 10, 10), interval=None),
                row("soda ahead, reuse, interval 4", (1.6, 1.6, 1.6)),
                row("cache-dit, compiled", (2.4, 2.4, 2.4), "peer", follows_mask=True),
                row("PAB, compiled", (0.1, 0.1, 0.1), "peer", follows_mask=False),
                {"name": "broken", "group": "peer", "notes": [], "reason": "ValueError: a | b"},
            ],
        },
        "wan14b": {"title": "Wan", "batch": 1, "large": True, "reason": "it needs 99 GiB"},
    },
    "host": {
        "title": "tiny",
        "steps": {"computed step": {"in all": 150.0}, "other": {"in all": 50.0, "in all, as a package": 40.0}},
    },
}  # fmt: skip


def test_bars():
    found = {verdict.what: verdict for verdict in bars.verdicts(REPORT)}
    words = {what.removeprefix("FLUX: "): verdict.word for what, verdict in found.items()}
    assert words["everything computed, over torch.compile"] == "met"
    assert words["share of time saved over share of FLOPs saved, reuse"] == "met"
    assert words["share of time saved over share of FLOPs saved, forecast"] == "missed"
    peer = found["FLUX: times faster than the fastest peer at the same mask, reuse"]
    best = "soda ahead, reuse, interval 4, over cache-dit, compiled"  # PAB is not at the same mask
    assert (peer.measured, peer.met) == (f"1.50 ({best})", True)
    forecast = found["FLUX: times faster than the fastest peer at the same mask, forecast"]
    assert (forecast.measured[:4], forecast.met) == ("0.80", False)
    assert found["FLUX: everything computed, conditioning ahead, over torch.compile"].measured == "0.900"
    assert words["cold start with a forecasting plan, over cold torch.compile"] == "met"
    assert words["warm start with a forecasting plan, over cold torch.compile"] == "missed"
    assert words["step that reuses everything, over a step of torch.compile"] == "not measured"
    assert words["host time outside of kernels, as a package, other"] == "met"
    assert (words["host time outside of kernels, computed step"], words["host time outside of kernels, other"]) == (
        "missed",
        "met",
    )


def test_the_table_shows_every_row_and_why_one_is_missing():
    text = table.markdown(REPORT)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for member in REPORT["models"]["flux"]["rows"]:
        assert any(line.startswith(f"| {member['name']} |") for line in lines)
    assert "ValueError: a \\| b" in text
    assert "| 1 | 120 in 7 |" in text
    assert "Left out: it needs 99 GiB" in text
    assert any("| 2.00 |" in line for line in lines if line.startswith("| soda, reuse"))
    widths = {line.replace("\\|", "").count("|") for line in lines if "FLUX" not in line and "host" not in line}
    assert len(widths) <= 3  # the table of rows, that of the host, that of the bars
    with pytest.raises(ValueError, match="cells"):
        table.grid(("a", "b"), [["1"]])


def test_methods():
    cpu, cuda = methods("cpu"), methods("cuda")
    assert set(cpu) < set(cuda)
    assert {row.group for row in cpu.values()} == {"eager", "torch.compile", "soda", "peer"}
    assert {row.mode for row in cuda.values() if row.group == "torch.compile"} == {None, "reduce-overhead"}
