"""The benchmark suite interleaves its rounds, and a row that fails costs no other row."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.suite import pool, rounds
from benchmarks.suite.configs import SCALED_DOWN
from benchmarks.suite.methods import Method
from benchmarks.suite.worker import Job

FAILS = {"breaks": "start", "dies": "round", "uncounted": "profile"}


class FakeWorker:
    asked: list[tuple[str, str]]
    living: set[str]
    most = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.living.add(name)
        FakeWorker.most = max(FakeWorker.most, len(self.living))

    @classmethod
    def of(cls, job: Job) -> "FakeWorker":
        return cls(job.method)

    def ask(self, command: str) -> dict:
        self.send(command)
        return self.answer(command)

    def send(self, command: str) -> None:
        self.asked.append((self.name, command))

    def answer(self, command: str) -> dict:
        if FAILS.get(self.name) == command:
            raise pool.Failed(f"{self.name} fails")
        answers = {
            "start": {"flops": [10, 10, 10], "compile_seconds": 5.0},
            "round": {"seconds": 3.0, "steps": [1.0, 1.0, 1.0], "graphs_compiled": int(self.name == "soda")},
            "profile": {"anchor": {"graph_calls": 1, "kernels": 2, "launches": 0}},
            "memory": {"weights_bytes": 1, "held_bytes": 2, "peak_bytes": 10**9},
        }
        return answers[command]

    def end(self) -> None:
        self.living.remove(self.name)


@pytest.fixture
def worker(monkeypatch):
    FakeWorker.asked, FakeWorker.living, FakeWorker.most = [], set(), 0
    monkeypatch.setattr(rounds, "Worker", FakeWorker)
    return FakeWorker


def measure(names, memory_bytes, device="cpu", beside=1):
    methods = [Method("plain", "torch.compile", None, cold=True), *(Method(name, "soda", None) for name in names)]
    job = Job(SCALED_DOWN[0], "", device, 3, 1, "", "")
    return {row["name"]: row for row in rounds.measure(methods, job, 2, memory_bytes, True, lambda line: None, beside)}


def order(asked):
    return [name for name, command in asked if command == "round"]


def test_rounds_are_interleaved_and_rows_that_fail_say_why(worker):
    rows = measure(["soda", "breaks", "dies", "other"], 100e9)
    assert order(worker.asked) == [*["plain", "soda", "dies", "other"], *["plain", "soda", "other"]]
    assert (rows["breaks"]["reason"], rows["dies"]["reason"]) == ("breaks fails", "dies fails")
    assert "rounds" not in rows["dies"]
    assert [sample["round"] for sample in rows["other"]["rounds"]] == [0, 1]
    assert rows["plain"]["warm_seconds"] == 5.0
    assert rows["soda"]["notes"] == ["compiled 2 graphs during the rounds"]
    assert not worker.living


def test_processes_may_compile_beside_each_other_but_rounds_do_not(worker):
    rows = measure(["soda", "breaks", "other"], 100e9, beside=2)
    starts = [index for index, (_, command) in enumerate(worker.asked) if command == "start"]
    assert starts[2] == starts[1] + 1, "two are told to start before either is waited for"
    assert order(worker.asked) == [*["plain", "soda", "other"]] * 2
    assert rows["soda"]["notes"][0] == "compiled beside 1 others"
    assert rows["breaks"]["reason"] == "breaks fails"
    assert "cold_seconds" in rows["plain"]


def test_groups_are_as_large_as_memory_allows_and_have_the_plain_one_beside_them(worker):
    rows = measure(["soda", "other"], 2.5e9)
    assert order(worker.asked) == ["plain", "soda"] * 2 + ["plain", "other"] * 2
    assert worker.most == 2
    assert [sample["round"] for sample in rows["plain"]["rounds"]] == [0, 1, 2, 3]
    assert [sample["round"] for sample in rows["other"]["rounds"]] == [2, 3]


def test_a_row_keeps_its_samples_when_only_its_counts_are_missing(worker):
    row = measure(["uncounted"], 100e9)["uncounted"]
    assert len(row["rounds"]) == 2
    assert row["notes"] == ["profile: uncounted fails"]


def test_a_device_that_cannot_hold_two_takes_one_after_the_other(worker):
    rows = measure(["soda", "other"], 3e9, "cuda")
    assert worker.most == 1
    assert order(worker.asked) == ["plain", "plain", "soda", "soda", "other", "other"]
    assert all(any("not interleaved" in note for note in row["notes"]) for row in rows.values())
    assert [sample["round"] for sample in rows["other"]["rounds"]] == [0, 1]
