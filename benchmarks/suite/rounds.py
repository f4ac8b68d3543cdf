"""Measures all rows of one model, interleaved as far as memory goes."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.suite.masks import computed
from benchmarks.suite.methods import Method
from benchmarks.suite.pool import Failed, Worker
from benchmarks.suite.results import Row
from benchmarks.suite.worker import Job

CPU_WORKER_BYTES = 1.0e9
CUDA_CONTEXT_BYTES = 1.0e9
Report = Callable[[str], None]


def measure(
    rows: Sequence[Method], job: Job, rounds: int, memory_bytes: float, warm: bool, tell: Report, beside: int = 1
) -> list[Row]:
    """Measures the methods on the job's denoiser.

    Args:
        rows: The methods, the modes of plain torch.compile among them.
        job: The denoiser and its settings; its method is replaced.
        rounds: How often each method runs a trajectory after its warm-up.
        memory_bytes: What the processes may use together, of the device's memory.
        warm: Whether to start the methods with a cache of their own a second time.
        tell: Takes a line about what goes on.
        beside: How many processes compile at the same time. Rounds never run beside anything.

    Returns:
        A row for each method, in order: with samples, or with the reason why there are none.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        jobs = {row.name: _job(job, row, index, Path(folder)) for index, row in enumerate(rows)}
        running = _Running(jobs, {row.name: row for row in rows}, rounds, tell, beside)
        stack.callback(running.end)
        fixed = [row.name for row in rows if row.group == "torch.compile"]
        others = [row.name for row in rows if row.group != "torch.compile"]
        running.start(fixed[:1])
        size = running.group_size(memory_bytes)
        if size > len(fixed):
            first, *later = _groups(others, size - len(fixed)) or [[]]
            running.run([*fixed, *first], [])
            for group in later:
                running.run(group, fixed)
            running.end(fixed)
            running.run_alone([name for name in others if "out of memory" in running.found[name].get("reason", "")])
        else:
            running.run_alone([*fixed, *others])
        if warm:
            for row in rows:
                running.start_warm(row)
        return [running.found[row.name] for row in rows]


class _Running:
    """Processes that run, and what they have said."""

    def __init__(
        self, jobs: dict[str, Job], methods: dict[str, Method], rounds: int, tell: Report, beside: int
    ) -> None:
        self.jobs, self.methods, self.rounds, self.tell, self.beside = jobs, methods, rounds, tell, beside
        self.workers: dict[str, Worker] = {}
        self.found: dict[str, Row] = {name: _empty(method) for name, method in methods.items()}
        self.round = itertools.count()

    def start(self, names: Sequence[str]) -> None:
        """Starts processes, which compile and warm up, so many at a time as may run beside each other."""
        for group in _groups(list(names), self.beside):
            for name in group:
                self.tell(f"    {name} starts")
                self.workers[name] = Worker.of(self.jobs[name])
                self.workers[name].send("start")
            for name in group:
                self._take_start(name, len(group))

    def _take_start(self, name: str, beside: int) -> None:
        answer = self._answer(name, "start")
        if answer is None:
            return
        row, method = self.found[name], self.methods[name]
        row["flops"], row["compile_seconds"] = answer["flops"], answer["compile_seconds"]
        row["follows_mask"] = method.same_mask and follows(answer["flops"], method.interval)
        if method.cold and beside == 1:
            row["cold_seconds"] = answer["compile_seconds"]
        if beside > 1:
            row["notes"].append(f"compiled beside {beside - 1} others")
        if not row["follows_mask"]:
            row["notes"].append("some of the work is done at the other steps too")

    def ask(self, name: str, command: str) -> dict[str, Any] | None:
        """Asks one process; None if it fails, which ends it.

        The row then has a reason instead of samples, unless all that it lacks are its counts.
        """
        self.workers[name].send(command)
        return self._answer(name, command)

    def _answer(self, name: str, command: str) -> dict[str, Any] | None:
        try:
            return self.workers[name].answer(command)
        except Failed as failure:
            if command in ("profile", "memory") and "rounds" in self.found[name]:
                self.found[name]["notes"].append(f"{command}: {failure}")
            else:
                self.found[name] = _empty(self.methods[name]) | {"reason": str(failure)}
            self.workers.pop(name).end()
            self.tell(f"    {name}: {failure}")
            return None

    def group_size(self, memory_bytes: float) -> int:
        """How many processes may live at the same time."""
        if next(iter(self.jobs.values())).device == "cpu":
            return max(2, int(memory_bytes / CPU_WORKER_BYTES))
        peaks = [answer["peak_bytes"] for name in list(self.workers) if (answer := self.ask(name, "memory"))]
        return int(memory_bytes / (1.2 * max(peaks, default=memory_bytes) + CUDA_CONTEXT_BYTES))

    def run_alone(self, names: list[str]) -> None:
        """One process after the other, where the device cannot hold two."""
        for name in names:
            self.found[name].pop("reason", None)
            self.round = itertools.count()
            self.run([name], [])
            self.end([name])
            self.found[name]["notes"].append("not interleaved: the device cannot hold two")

    def run(self, names: list[str], beside: list[str]) -> None:
        """Rounds of some methods, with those beside them in the same rounds; then their counts.

        The processes end, but for those of plain torch.compile, which later ones have beside them.
        """
        self.start([name for name in names if name not in self.workers])
        started = [name for name in names if name in self.workers]
        order = [name for name in (*beside, *started) if name in self.workers]
        for _ in range(self.rounds):
            number = next(self.round)
            for name in [name for name in order if name in self.workers]:
                sample = self.ask(name, "round")
                if sample:
                    self.found[name].setdefault("rounds", []).append({"round": number, **sample})
        for name in started:
            for command in ("profile", "memory"):
                if name in self.workers and (answer := self.ask(name, command)):
                    self.found[name][command] = answer
            self._note(name)
        self.end([name for name in names if self.methods[name].group != "torch.compile"])

    def _note(self, name: str) -> None:
        row = self.found[name]
        calls = [kind["graph_calls"] for kind in row.get("profile", {}).values()]
        if self.methods[name].compiled and calls and not any(calls):
            row["notes"].append("nothing compiled runs: it was recompiled too often and runs in eager mode")
        again = sum(sample["graphs_compiled"] for sample in row.get("rounds", []))
        if again:
            row["notes"].append(f"compiled {again} graphs during the rounds")
        if "rounds" in row:
            seconds = min(sample["seconds"] for sample in row["rounds"])
            self.tell(f"    {name}: {seconds:.3f} s, compiled in {row['compile_seconds']:.1f} s")

    def start_warm(self, method: Method) -> None:
        """Starts a method again in a new process, with the compiler's caches of the first."""
        row = self.found[method.name]
        if not method.cold or "rounds" not in row:
            return
        worker = Worker.of(self.jobs[method.name])
        try:
            row["warm_seconds"] = worker.ask("start")["compile_seconds"]
        except Failed as failure:
            row["notes"].append(f"warm start: {failure}")
        finally:
            worker.end()

    def end(self, names: Sequence[str] | None = None) -> None:
        """Ends processes, all by default."""
        for name in list(self.workers) if names is None else names:
            if name in self.workers:
                self.workers.pop(name).end()


def follows(flops: Sequence[int], interval: int | None) -> bool:
    """Whether the steps of the mask computed everything, and the others less than half of it."""
    mask = computed(len(flops), interval)
    return all(
        share > 0.99 if is_computed else share < 0.5
        for share, is_computed in zip((step / flops[0] for step in flops), mask, strict=True)
    )


def _empty(method: Method) -> Row:
    return {
        "name": method.name, "group": method.group, "interval": method.interval, "mode": method.mode, "notes": [],
    }  # fmt: skip


def _job(job: Job, method: Method, index: int, folder: Path) -> Job:
    cache = folder / (f"cache-{index}" if method.cold else "cache")
    return replace(job, method=method.name, cache=str(cache), log=str(folder / f"{index}.log"))


def _groups(names: list[str], size: int) -> list[list[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]
