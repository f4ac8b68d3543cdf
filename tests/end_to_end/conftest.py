"""Every test here compiles: one thread, and nothing that Dynamo kept from another file."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def fresh_compiler() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    # All models of a file share the code object of one forward, and Dynamo counts compilations by code object.
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch._dynamo.reset()
    torch.set_num_threads(threads)
