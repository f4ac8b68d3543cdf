"""Lets every test folder import the shared material that lies directly in ``tests/``; one thread for each worker."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by processes that tests start
# What calls the kernels of a package takes g++ half as long without optimisation; the kernels stay optimised.
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_finish() -> None:
    """Leaves what was imported out of garbage collections, and makes these rare: they took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
