"""Tasks, one method on one model (ours: at one cost), in processes of their own or one after the other."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.leaderboard import store
from benchmarks.leaderboard.rows import Scoring


@dataclass(frozen=True)
class Task:
    """One method on one model, at some costs."""

    model: str
    method: str
    costs: tuple[float, ...]
    device: str
    threads: int
    scoring: Scoring
    out: Path


def run_task(task: Task) -> None:
    """Make the rows of a task and write each as it is done."""
    import torch

    from benchmarks.leaderboard.rows import rows_of

    torch.set_num_threads(task.threads)
    subject = _subject(task.model, task.device)
    for row in rows_of(subject, task.method, task.costs, task.scoring):
        store.add(task.out, row)


@lru_cache(maxsize=8)
def _subject(model: str, device: str) -> Any:
    from benchmarks.leaderboard.models import MODELS

    return MODELS[model](device)


def _child(task: Task, log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    run_task(task)


def run_all(tasks: Sequence[Task], jobs: int, grace: float, say: Callable[[str], None]) -> None:
    """Run tasks, ``jobs`` at once; a process that dies, or is late by more than the grace, leaves rows with reasons."""
    context = multiprocessing.get_context("spawn")
    waiting, running = list(tasks), dict[Any, tuple[Task, float]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            task = waiting.pop(0)
            log = str(Path(task.scoring.folder) / f"{task.model}-{task.method}.log".replace(" ", "_").replace("/", "_"))
            process: Any = context.Process(target=_child, args=(task, log))
            process.start()
            running[process] = (task, time.time())
        for process in [each for each in running if not each.is_alive() or _late(running[each][0], grace)]:
            task, started = running.pop(process)
            late = process.is_alive()
            if late:
                process.kill()
            process.join()
            say(f"{task.model}: {task.method}, {time.time() - started:.0f} s")
            if late or process.exitcode:
                missing(task, "out of time" if late else f"its process ended with {process.exitcode}")
        time.sleep(0.05)


def _late(task: Task, grace: float) -> bool:
    return time.time() > task.scoring.deadline + grace


def missing(task: Task, why: str) -> None:
    """Give every cost without a row a reason."""
    there = {store.key(row) for row in store.load(task.out)["rows"]}
    for cost in task.costs:
        if (task.model, task.method, cost) not in there:
            row = {"model": task.model, "method": task.method, "kind": "rule", "source": "", "budget": cost}
            store.add(task.out, {**row, "reason": why})
