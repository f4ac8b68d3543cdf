"""The Ray Serve application: replicas behind HTTP, on this machine alone."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from safetensors.torch import save
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from examples.serving import metrics
from examples.serving.orders import Order
from examples.serving.replicas import REPLICAS, prepare_thread

HOST, PORT = "127.0.0.1", 8123
NODE = "127.0.0.2"
"""Where Ray's processes find each other, on loopback too; for 127.0.0.1 it would take the machine's own address."""
THREADS, COUNT = 2, 2
"""Orders that a replica draws at once, and how many replicas a service has."""


@serve.deployment(num_replicas=COUNT, max_ongoing_requests=2 * THREADS, ray_actor_options={"num_cpus": 0})
class Service:
    """One replica. ``POST`` an order for pictures; ``/metrics`` and ``/replicas`` tell of all replicas."""

    def __init__(self, name: str, folder: str, release: int) -> None:
        self._name, self._release = name, release
        self._replica = REPLICAS[name](Path(folder))
        self._threads = ThreadPoolExecutor(THREADS, initializer=prepare_thread)

    async def __call__(self, request: Request) -> Response:
        """Answer a request."""
        page = request.url.path.rpartition("/")[2]
        if page in ("metrics", "replicas"):
            states = await serve.get_app_handle(self._name).broadcast("state").results_async()
            return JSONResponse(states) if page == "replicas" else PlainTextResponse(metrics.page(states))
        try:
            order = Order.from_json(await request.json())
        except ValueError as error:
            return PlainTextResponse(str(error), status_code=400)
        return await self._draw(order)

    async def _draw(self, order: Order) -> Response:
        cancelled = threading.Event()
        drawing = asyncio.get_running_loop().run_in_executor(self._threads, self._replica.draw, order, cancelled)
        try:
            images = await drawing
        except asyncio.CancelledError:  # the client went away; the thread would go on
            cancelled.set()
            raise
        return Response(save({"images": images}), media_type="application/octet-stream")

    def state(self) -> dict[str, Any]:
        """Return how this replica began, and what it did since."""
        replica = self._replica
        return {
            "replica": serve.get_replica_context().replica_id.unique_id,
            "release": self._release,
            "measured": replica.measured,
            "seconds": replica.seconds,
            "counts": dict(replica.counts),
            "stats": replica.stats(),
        }


def deploy(name: str, folder: Path, release: int = 0, seconds: float = 900.0) -> list[dict[str, Any]]:
    """Start the replicas of a service, or put others in the place of its present ones, one after the other.

    Args:
        name: Of the service, in ``REPLICAS``.
        folder: What the replicas share.
        release: A number that replicas are told; another one than now restarts them.
        seconds: How long to wait for them.

    Returns:
        The state of each replica.

    Raises:
        RuntimeError: Ray Serve gave up, for example because a replica raised.
        TimeoutError: They are not there in time.
    """
    service: Any = Service  # the decorator made it a deployment
    target = serve.RunTarget(service.bind(name, str(folder), release), name=name, route_prefix=f"/{name}")
    serve.run_many([target], wait_for_ingress_deployment_creation=True, wait_for_applications_running=False)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        present = serve.status().applications[name]
        if present.status == "DEPLOY_FAILED":
            raise RuntimeError(present.message)
        if present.status == "RUNNING":
            states: list[dict[str, Any]] = serve.get_app_handle(name).broadcast("state").results(timeout_s=30)
            if len(states) == COUNT and all(state["release"] == release for state in states):
                return states
        time.sleep(0.5)
    raise TimeoutError(f"the replicas of {name} did not start in {seconds:.0f} s")


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Run Ray and Serve, reachable from this machine alone, and stop all of their processes at the end.

    Args:
        folder: Replicas keep compiled code there, for each other and for later ones.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}  # replicas inherit them
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    ray.init("local", _node_ip_address=NODE, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": HOST, "port": PORT})
        yield
    finally:
        stop: Any = serve.shutdown  # it has no types
        stop()
        ray.shutdown()
