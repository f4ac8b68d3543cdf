"""A short walk over what users do to an accelerated pipeline; tests/random_walk.py goes further."""

import random

import pytest
from random_walk import Walk
from tracing import eager_graphs


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_done_both_pipelines_draw_the_same(seed: int) -> None:
    pytest.importorskip("peft")
    with eager_graphs():
        walk = Walk(random.Random(seed))
        walk.run(8)
    assert walk.done.total() == 8
