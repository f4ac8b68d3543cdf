"""Serves one kind of replicas until it is interrupted: ``python -m examples.serving.serve``."""

import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from examples.serving.app import HOST, PORT, deploy, running
from examples.serving.export import export
from examples.serving.orders import STEPS
from examples.serving.replicas import package
from soda_compile.storage.cache import cache_folder


def main(
    service: Literal["accelerated", "packages", "plain"] = "accelerated",
    folder: Annotated[Path | None, typer.Option(help="what replicas share; one in the cache directory")] = None,
) -> None:
    """Start the replicas, and stop them at ctrl-C."""
    shared = (folder or cache_folder() / "serving").resolve()
    shared.mkdir(parents=True, exist_ok=True)
    if service == "packages" and not all(package(shared, steps).exists() for steps in STEPS):
        export(shared)
    with running(shared):
        deploy(service, shared)
        print(f"http://{HOST}:{PORT}/{service}; ctrl-C stops it", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    typer.run(main)
