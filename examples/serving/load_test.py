"""Starts all services, sends them orders in turns, and checks every picture: ``python -m examples.serving.load_test``.

It needs two cores and some minutes, and writes a table and all figures.
"""

import asyncio
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from rich.progress import Progress

from examples.serving.app import HOST, PORT, deploy, running
from examples.serving.client import Answer, Sent, send_all
from examples.serving.judge import Judged, judge
from examples.serving.orders import STEPS, catalogue
from examples.serving.reference import Reference, reference_path
from examples.serving.replicas import package
from examples.serving.report import write
from soda_compile.storage.progress import progress_bar

SERVICES = ("accelerated", "packages", "plain")
RESTARTED = SERVICES[:2]
BLOCK = 30
"""Orders that one service gets before it is the turn of the next."""
GIVEN_UP = 0.05
"""Share of the orders whose client goes away."""


def orders(seeds: int) -> Iterator[Sent]:
    """Yield orders of the catalogue at random, without end, the same ones in each run."""
    draw, listed = random.Random(0), catalogue(seeds)
    while True:
        given_up_after = draw.uniform(0.01, 0.5) if draw.random() < GIVEN_UP else None
        yield Sent(draw.choice(listed), given_up_after)


@dataclass
class LoadTest:
    """A load test under way.

    Attributes:
        folder: What replicas share.
        reference: What shall be drawn.
        clients: How many send at once.
        until: When no block is begun any more, on the monotonic clock.
        rows: One for each order.
        busy_seconds: By service, the time of its blocks.
    """

    folder: Path
    reference: Reference
    clients: int
    until: float
    rows: list[Judged] = field(default_factory=list)
    busy_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SERVICES, 0.0))

    async def block(
        self, session: aiohttp.ClientSession, service: str, sent: list[Sent], progress: Progress, *, restarting: bool
    ) -> None:
        """Send some orders to one service, and check the answers."""

        def done(answer: Answer) -> None:
            self.rows.append(judge(service, answer, self.reference, restarting=restarting))
            progress.advance(progress.task_ids[0])

        seconds = await send_all(session, service, sent, self.clients, done)
        if not restarting:
            self.busy_seconds[service] += seconds

    async def restart(
        self, session: aiohttp.ClientSession, service: str, sent: Iterator[Sent], progress: Progress
    ) -> list[dict[str, Any]]:
        """Replace the replicas of a service while it goes on to get orders; return the states of the new ones."""
        started = time.monotonic()
        deploying = asyncio.create_task(asyncio.to_thread(deploy, service, self.folder, 1))
        while not deploying.done():
            await self.block(session, service, list(itertools.islice(sent, 10)), progress, restarting=True)
        self.until += time.monotonic() - started  # a slow restart takes no time from the blocks after it
        return await deploying

    async def run(self, count: int, seeds: int) -> dict[str, Any]:
        """Send so many orders, the same ones to all services; half way, restart two of these.

        Returns:
            The states of restarted replicas, and the metrics of each service: before the restart, and at the end.
        """
        sent, extra = list(itertools.islice(orders(seeds), -(-count // len(SERVICES)))), orders(seeds)
        blocks = [sent[start : start + BLOCK] for start in range(0, len(sent), BLOCK)]
        restarted, metrics = {}, dict[str, list[str]]()
        async with aiohttp.ClientSession(f"http://{HOST}:{PORT}") as session:
            with progress_bar() as progress:
                progress.add_task("sending orders", total=len(sent) * len(SERVICES))
                for number, block in enumerate(blocks):
                    if number == len(blocks) // 2:
                        await self._scrape(session, metrics)
                        for service in RESTARTED:
                            restarted[service] = await self.restart(session, service, extra, progress)
                    for turn in range(len(SERVICES)):
                        service = SERVICES[(turn + number) % len(SERVICES)]
                        if time.monotonic() < self.until:
                            await self.block(session, service, block, progress, restarting=False)
            await self._scrape(session, metrics)
        return {"restarted": restarted, "metrics": metrics}

    async def _scrape(self, session: aiohttp.ClientSession, metrics: dict[str, list[str]]) -> None:
        for service in SERVICES:
            async with session.get(f"/{service}/metrics") as response:
                metrics.setdefault(service, []).append(await response.text())


def prepare(module: str, *arguments: str) -> float:
    """Run a module of this folder in a process of its own; return the seconds that it took."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"examples.serving.{module}", *arguments], check=True, timeout=1500)
    return time.perf_counter() - started


def main(
    requests: int = 2000,
    seeds: Annotated[int, typer.Option(help="orders of each step count and size")] = 12,
    clients: int = 4,
    seconds: Annotated[float, typer.Option(help="no block of orders is begun after that")] = 720.0,
    folder: Annotated[Path | None, typer.Option(help="is kept, and what is in it used; a new one by default")] = None,
    out: Path = Path("benchmarks/results/serving.json"),
) -> None:
    """Run the load test; exit with 1 if an answer was wrong or missing."""
    with tempfile.TemporaryDirectory(prefix="serving-") as made:
        shared = (folder or Path(made)).resolve()
        shared.mkdir(exist_ok=True)
        began: dict[str, Any] = {"load_average_before": os.getloadavg()}
        with running(shared):
            began["started"] = {"accelerated": deploy("accelerated", shared)}
            if not all(package(shared, steps).exists() for steps in STEPS):
                began["export_seconds"] = prepare("export", str(shared))
            if not reference_path(shared, seeds).exists():
                began["reference_seconds"] = prepare("reference", str(shared), str(seeds))
            began["started"] |= {name: deploy(name, shared) for name in SERVICES[1:]}
            test = LoadTest(shared, Reference.load(shared, seeds), clients, time.monotonic() + seconds)
            began |= asyncio.run(test.run(requests, seeds))
        began["measurements_stored"] = len(list((shared / "store").glob("*/setting.json")))
        began |= {"load_average_after": os.getloadavg(), "told": test.reference.told, "clients": clients}
    right = write(out, test.rows, test.busy_seconds, began)
    raise SystemExit(0 if right else 1)


if __name__ == "__main__":
    typer.run(main)
