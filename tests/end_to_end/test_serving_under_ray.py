"""Two replicas of examples/serving under Ray Serve, on loopback."""

import asyncio
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("ray", reason="pip install soda-compile[serving]")

import aiohttp
import ray
from short_digits import save_short_pipeline
from tracing import graphs_as_they_are

from examples.serving import app, metrics
from examples.serving.client import Answer, Sent, send_all
from examples.serving.orders import catalogue
from examples.serving.replicas import Accelerated
from soda_compile.acceleration.trying import TRIED


@dataclass
class Ran:
    """What came of a service that was restarted while clients sent orders."""

    started: list[dict[str, Any]] = field(default_factory=list)
    restarted: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)


def test_two_replicas_under_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured once, answered rightly while a client goes away and replicas are replaced, and metrics of both."""
    save_short_pipeline(tmp_path)
    graphs_as_they_are(monkeypatch)  # replicas inherit it
    for name in ("TORCHINDUCTOR_CACHE_DIR", "RAY_USAGE_STATS_ENABLED", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # so that it is as before at the end
    with socket.socket() as free:
        free.bind((app.HOST, 0))
        monkeypatch.setattr(app, "PORT", free.getsockname()[1])
    ran = Ran()
    with app.running(tmp_path):
        assert ray.util.get_node_ip_address() == app.NODE
        ran.started = app.deploy("accelerated", tmp_path)
        asyncio.run(load(ran, tmp_path))
    assert sorted(state["measured"] for state in ran.started) == [0, 4 + TRIED]
    assert [state["measured"] for state in ran.restarted] == [0, 0]
    assert len(list(tmp_path.glob("store/*/setting.json"))) == 1
    with torch._dynamo.config.patch(automatic_dynamic_shapes=True):  # what a replica sets is not to stay
        check(ran, Accelerated(tmp_path))


async def load(ran: Ran, folder: Path) -> None:
    orders = catalogue(1)
    sent = [*map(Sent, orders), Sent(orders[-1], given_up_after=0.02), *map(Sent, orders)]
    async with aiohttp.ClientSession(f"http://{app.HOST}:{app.PORT}") as session:
        await send_all(session, "accelerated", sent, 3, ran.answers.append)
        async with session.post("/accelerated", json={"labels": [1], "steps": 7, "seed": 0}) as response:
            assert (response.status, "not served" in await response.text()) == (400, True)
        restarting = asyncio.create_task(asyncio.to_thread(app.deploy, "accelerated", folder, 1))
        while not restarting.done():
            await send_all(session, "accelerated", map(Sent, orders), 2, ran.answers.append)
        ran.restarted = await restarting
        await send_all(session, "accelerated", map(Sent, orders), 2, ran.answers.append)
        async with session.get("/accelerated/metrics") as response:
            ran.pages.append(await response.text())


def check(ran: Ran, alone: Accelerated) -> None:
    assert not [answer.error for answer in ran.answers if answer.error]
    drawn = [answer for answer in ran.answers if answer.images is not None]
    assert len(drawn) == len(ran.answers) - 1
    wanted = {order: alone.draw(order) for order in catalogue(1)}
    assert all(torch.equal(answer.images, wanted[answer.sent.order]) for answer in drawn)
    (sums,) = map(metrics.totals, ran.pages)
    assert sums["soda_compile_calls_total"] > 0
    assert not any("misses_total" in name for name in sums)
