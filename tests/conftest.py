"""Lets every test folder import the shared material that lies directly in ``tests/``; one thread for each worker."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by processes that tests start
# pytest's workers fill the machine; those of Inductor would have to be started, and import torch each.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# What calls the kernels of a package takes g++ half as long without optimisation; the kernels stay optimised.
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_finish() -> None:
    """Takes away what costs time and tells nothing: garbage collections, a tenth of it, and torch's records, as much.

    What was imported is left out of garbage collections, and these are rare. torch writes down every graph that it
    traces for whoever listens, and pytest listens to each logger that does not propagate.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    logging.getLogger("torch.__trace").propagate = True


@pytest.fixture
def eager() -> Iterator[None]:
    """Rewritten graphs run node by node, and nothing that Dynamo kept comes in or goes out."""
    from tracing import eager_graphs

    with eager_graphs():
        yield


@pytest.fixture(scope="module")
def eager_throughout() -> Iterator[None]:
    """The same for all tests of a file together."""
    from tracing import eager_graphs

    with eager_graphs():
        yield
