"""What computes so many steps is compared with samplers that take so many."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.equal_evaluations import beside, measure, text
from benchmarks.leaderboard.ours import Measured
from benchmarks.leaderboard.subject import Subject

COUNT, SAMPLES = 3, 2


def test_all_call_the_whole_denoiser_as_often(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SODA_COMPILE_LOWERING", "eager")
    rows = measure(Measured(subject, tmp_path, 2), COUNT, SAMPLES)["rows"]
    assert [row["method"] for row in rows] == ["ours", "DDIM", "DPM++", "UniPC"]
    ours, *others = rows
    assert all(row["setting"].startswith(f"{COUNT} steps") for row in others)
    assert all(row["cost"] == pytest.approx(COUNT / subject.steps) for row in others)
    assert COUNT / subject.steps < ours["cost"] < (COUNT + 0.5) / subject.steps, (
        "the ends of the model run at the steps between"
    )
    assert ours["ratio_to_ours"] == (1.0, 1.0, 1.0)
    assert all(len(row["relative_l2"]) == SAMPLES for row in rows)


def test_the_closest_of_the_others_is_told_over_ours() -> None:
    def row(method: str, error: float) -> dict[str, object]:
        ratio = error / 0.01
        return {
            "evaluations": 6, "method": method, "setting": "", "cost": 0.12, "relative_l2": [error, error],
            "ratio_to_ours": (ratio, ratio, ratio),
        }  # fmt: skip

    rows = [row("ours", 0.01), row("DDIM", 0.05), row("UniPC", 0.03)]
    lines = text({"tiny": {"seeds": "0 to 1", "steps": 50, "rows": rows}}).splitlines()
    assert "- tiny, 0 to 1: 6: 3.00 (3.00–3.00) (UniPC)" in lines
    order = [line.split(" | ")[2] for line in lines if line.startswith("| tiny")]
    assert order == ["ours", "UniPC", "DDIM"]


def test_rows_of_other_numbers_of_evaluations_are_kept_where_they_were_measured_alike() -> None:
    def found(seeds: str, *evaluations: int) -> dict[str, object]:
        return {"seeds": seeds, "rows": [{"evaluations": each, "of": seeds} for each in evaluations]}

    earlier = found("0 to 9", 6, 12)
    assert beside(earlier, found("0 to 9", 12)) == found("0 to 9", 6, 12)
    assert beside(found("0 to 9", 12), found("0 to 9", 6)) == found("0 to 9", 6, 12)
    assert beside(earlier, found("0 to 99", 12)) == found("0 to 99", 12)
    assert beside({}, found("0 to 9", 12)) == found("0 to 9", 12)
