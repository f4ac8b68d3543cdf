"""What tests of conditioning share."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from soda_compile.compiler.conditioning_stage import ConditioningStage
from soda_compile.compiler.program import Program
from soda_compile.runtime import conditioning_cache
from soda_compile.runtime.conditioning_cache import ConditioningCache


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of steps whose conditioning was not computed for them alone, run after run."""
    steps: list[int] = []
    programs: list[Program] = []
    run_once, values = conditioning_cache.run_once, ConditioningCache.values

    def noted(program: Program, inputs: Any) -> Any:
        programs.append(program)
        return run_once(program, inputs)

    def watched(cache: ConditioningCache, stage: ConditioningStage, step: int, *more: Any) -> Any:
        programs.clear()
        found = values(cache, stage, step, *more)
        if stage.one_step not in programs:
            steps.append(step)
        return found

    monkeypatch.setattr(conditioning_cache, "run_once", noted)
    monkeypatch.setattr(ConditioningCache, "values", watched)
    return steps
