"""The load test of examples/serving against a server that answers at once."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("ray", reason="pip install soda-compile[serving]")

from aiohttp import web
from safetensors.torch import save

from examples.serving import load_test
from examples.serving.orders import STEPS, Order, catalogue
from examples.serving.reference import Reference
from examples.serving.report import write

PAGE = 'soda_compile_calls_total{denoiser="one/transformer"} 3\nsoda_compile_misses_total{denoiser="a",kind="b"} 2\n'


def picture(order: Order) -> torch.Tensor:
    return torch.rand(len(order.labels), 1, 8, 8, generator=torch.Generator().manual_seed(order.seed))


async def answer(request: web.Request) -> web.Response:
    """Answer rightly, but for one kind of order from one service."""
    order = Order.from_json(await request.json())
    await asyncio.sleep(0.02)
    wrong = request.path == "/plain" and order.steps == STEPS[0]
    return web.Response(body=save({"images": picture(order) + 0.1 * wrong}))


async def page(_: web.Request) -> web.Response:
    return web.Response(text=PAGE)


async def under_load(test: load_test.LoadTest, port: int) -> dict[str, Any]:
    server = web.Application()
    server.router.add_post("/{service}", answer)
    server.router.add_get("/{service}/metrics", page)
    runner = web.AppRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        return await test.run(90, seeds=1)
    finally:
        await runner.cleanup()


def test_wrong_pictures_are_counted_and_the_table_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    state = {"seconds": 1.5, "measured": 0, "release": 1}
    monkeypatch.setattr(load_test, "PORT", port)
    monkeypatch.setattr(load_test, "BLOCK", 10)
    monkeypatch.setattr(load_test, "deploy", lambda *_: time.sleep(0.1) or [state, state])
    pictures = {order: picture(order) for order in catalogue(1)}
    reference = Reference(dict.fromkeys(("original", "planned", "compiled"), pictures), dict.fromkeys(STEPS, 0.1))
    test = load_test.LoadTest(tmp_path, reference, clients=4, until=time.monotonic() + 60)
    began = asyncio.run(under_load(test, port))
    began |= {"started": {"accelerated": [state]}, "measurements_stored": 1, "told": reference.told, "clients": 4}
    began |= {"load_average_before": (1.0, 1.0, 1.0), "load_average_after": (1.0, 1.0, 1.0)}
    assert not write(tmp_path / "serving.json", test.rows, test.busy_seconds, began)
    found = json.loads((tmp_path / "serving.json").read_text())["services"]
    assert {name: each["steady"]["sent"] for name, each in found.items()} == dict.fromkeys(load_test.SERVICES, 30)
    assert {name: each["restarting"]["sent"] > 0 for name, each in found.items()} == {
        "accelerated": True, "packages": True, "plain": False,
    }  # fmt: skip
    plain, right = found["plain"]["steady"], found["accelerated"]["steady"]
    assert plain["differ"] == plain["far"] == plain["drawn"] - plain["equal_bits"] > 0
    assert right["differ"] == right["failed"] == right["far"] == 0
    assert right["equal_bits"] == right["drawn"] == 30 - right["given_up"]
    assert 0.02 <= right["latency_seconds"]["p50"] <= right["latency_seconds"]["p99"]
    assert "| packages | restarted | 1.5, 1.5 | 0, 0 |" in (tmp_path / "serving.md").read_text()
