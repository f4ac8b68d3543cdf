"""A denoiser with side information, its plan, and what its constant stage runs."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from constant_runs import STEPS, calls
from side_models import side_denoiser
from torch import nn
from tracing import eager_graphs

import soda_compile
from soda_compile.plans.plan import Plan, compute_all_plan
from soda_compile.runtime import constant_cache


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    with eager_graphs():
        yield


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The calls of the constant stage, for each call of the denoiser."""
    found: list[list[int]] = []
    run = constant_cache._run

    def noted(stage: Any, numbers: Sequence[int], *more: Any) -> None:
        found.append(list(numbers))
        run(stage, numbers, *more)

    monkeypatch.setattr(constant_cache, "_run", noted)
    return found


@pytest.fixture
def model() -> nn.Module:
    return side_denoiser()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compute_all_plan(soda_compile.inspect(side_denoiser(), **calls()[0]).region_names, STEPS)
