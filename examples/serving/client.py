"""A client of the services: sends orders, some of which it gives up, and times the answers."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import aiohttp
import torch
from safetensors.torch import load

from examples.serving.orders import Order

PATIENCE_SECONDS = 120.0
"""After that an answer counts as failed."""


@dataclass(frozen=True)
class Sent:
    """An order on its way.

    Attributes:
        order: What is ordered.
        given_up_after: Seconds after which the client goes away; None where it waits.
    """

    order: Order
    given_up_after: float | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of an order.

    Attributes:
        sent: The order.
        seconds: From sending it to the last byte of the answer.
        images: What was drawn; None without an answer.
        error: Why there is none; empty where the client went away.
    """

    sent: Sent
    seconds: float
    images: torch.Tensor | None = None
    error: str = ""


async def send(session: aiohttp.ClientSession, service: str, sent: Sent) -> Answer:
    """Send one order, and wait for the pictures unless it is to be given up."""
    started = time.perf_counter()
    images, error = None, ""
    try:
        async with asyncio.timeout(sent.given_up_after or PATIENCE_SECONDS):
            async with session.post(f"/{service}", json=asdict(sent.order)) as response:
                body = await response.read()
        if response.status == 200:
            images = load(body)["images"]
        else:
            error = f"{response.status}: {body[:200].decode(errors='replace')}"
    except TimeoutError:
        error = "" if sent.given_up_after else f"no answer in {PATIENCE_SECONDS:.0f} s"
    except aiohttp.ClientError as raised:
        error = f"{type(raised).__name__}: {raised}"
    return Answer(sent, time.perf_counter() - started, images, error)


async def send_all(
    session: aiohttp.ClientSession, service: str, orders: Iterable[Sent], clients: int, done: Callable[[Answer], None]
) -> float:
    """Send orders from so many clients, each the next one when it has an answer; return the seconds that it took."""
    waiting, started = iter(orders), time.perf_counter()

    async def client() -> None:
        for sent in waiting:
            done(await send(session, service, sent))

    await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - started
