"""Statistics as Prometheus reads them."""

from typing import Any

from soda_compile import Stats
from soda_compile.runtime.statistics import ModelStatistics

EMPTY: dict[str, Any] = ModelStatistics().as_dict()


def test_every_line_is_a_comment_or_a_sample():
    counts = {**EMPTY, "calls": 12, "regions": {"compute": 30, "reuse": 18}, "misses": {"steps": 1}, "slot_bytes": 4096}
    drift = {"readings": 3, "error": 0.1, "ratio": 1.5, "last_ratio": None, "worst_ratio": 2.25}
    counts |= {"guarded": 4, "drift": drift}
    text = Stats({"transformer": counts, 'odd "name"\\': EMPTY}).prometheus()
    lines = text.splitlines()
    assert text.endswith("\n")
    assert "# TYPE soda_compile_calls_total counter" in lines
    assert 'soda_compile_calls_total{denoiser="transformer"} 12' in lines
    assert 'soda_compile_calls_total{denoiser="odd \\"name\\"\\\\"} 0' in lines
    assert 'soda_compile_regions_total{denoiser="transformer",action="reuse"} 18' in lines
    assert 'soda_compile_misses_total{denoiser="transformer",kind="steps"} 1' in lines
    assert 'soda_compile_slot_bytes{denoiser="transformer"} 4096' in lines
    assert 'soda_compile_guarded_total{denoiser="transformer"} 4' in lines
    assert [line for line in lines if line.startswith("soda_compile_drift{")] == [
        f'soda_compile_drift{{denoiser="transformer",of="{of}"}} {value}'
        for of, value in (("error", 0.1), ("ratio", 1.5), ("worst_ratio", 2.25))
    ], "what is not known is left out"
    samples = [line for line in lines if not line.startswith("# ")]
    assert all(float(line.rpartition(" ")[2]) >= 0 for line in samples)
    assert len({line.rpartition(" ")[0] for line in samples}) == len(samples)


def test_each_metric_is_declared_once_before_its_samples():
    declared: list[str] = []
    for line in Stats({"model": EMPTY}).prometheus().splitlines():
        if line.startswith("# TYPE"):
            declared.append(line.split()[2])
        elif not line.startswith("#"):
            assert line.partition("{")[0] == declared[-1]
    assert len(set(declared)) == len(declared) == 9
