"""Everything here needs a GPU: it runs with ``python -m benchmarks.gpu``, and is skipped on other machines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Float32 as such, so that results can be compared to rounding; nothing that Dynamo kept from another test."""
    torch._dynamo.reset()
    cudnn: Any = torch.backends.cudnn
    with torch._dynamo.config.patch(recompile_limit=64), cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch._dynamo.reset()
    torch.cuda.empty_cache()
