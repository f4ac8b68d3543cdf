"""What a newcomer sees: only what the project says itself, each of it once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from diffusers.utils import logging as diffusers_logging
from paths import ROOT
from tracing import graphs_as_they_are

import soda_compile
from soda_compile.acceleration.trying import TRIED
from soda_compile.digits.pipeline import load

FIRST = """
import soda_compile
from soda_compile.digits.pipeline import load

pipe = load()
soda_compile.accelerate(pipe, speedup=1.5, num_inference_steps=5, calibrate_with=1)
pipe([3], num_inference_steps=5)
pipe([7], num_inference_steps=5)
"""


def test_a_fresh_process_says_what_it_does_and_nothing_else(tmp_path: Path) -> None:
    variables = {
        **os.environ,
        "SODA_COMPILE_CACHE": str(tmp_path),
        "SODA_COMPILE_LOWERING": "eager",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    found = subprocess.run([sys.executable, "-c", FIRST], env=variables, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
    measuring, planned, recording, simulating, trying, closest = found.stderr.splitlines()
    assert measuring == "soda: measuring DigitsPipeline in 1 generation"
    assert planned.startswith("soda: new plan for 5 steps, ")
    assert recording == f"soda: recording {TRIED} generations more to try plans on; closest=0 leaves that out"
    assert simulating == f"soda: simulating intervals on {TRIED} generations"
    assert trying == f"soda: trying plans of 8 strategies on {TRIED} generations"
    assert re.fullmatch(r"soda: closest is the plan '.+'.*: \d+\.\d\d% off on these generations .+ \d+\.\d\d%", closest)


@pytest.mark.parametrize("shown", [True, False])
def test_the_digits_load_in_silence_and_leave_the_callers_choice(
    shown: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    before = diffusers_logging.is_progress_bar_enabled()
    set_bars = {True: diffusers_logging.enable_progress_bar, False: diffusers_logging.disable_progress_bar}
    try:
        set_bars[shown]()
        load()
        assert diffusers_logging.is_progress_bar_enabled() is shown
    finally:
        set_bars[before]()
    assert capfd.readouterr() == ("", "")


@pytest.mark.thorough
@pytest.mark.parametrize("config", [{"desc": "mine"}, None])
def test_generations_to_measure_on_draw_no_bar_of_their_own(
    config: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    graphs_as_they_are(monkeypatch)
    pipe = load()
    del pipe._progress_bar_config  # the loader leaves its bar out
    if config is not None:
        pipe.set_progress_bar_config(**config)
    soda_compile.accelerate(
        pipe, speedup=1.3, num_inference_steps=4, calibrate_with=1, verify=1, cache=tmp_path, closest=0
    )
    assert all(line.startswith("soda: ") for line in capfd.readouterr().err.splitlines())
    pipe([3], num_inference_steps=4)
    assert "4/4" in capfd.readouterr().err, "the user's own generations have their bar"
    assert vars(pipe).get("_progress_bar_config") == (config or {})  # diffusers makes an empty one at the first call
