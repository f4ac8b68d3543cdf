"""A short walk over what users do to an accelerated pipeline; tests/random_walk.py goes further."""

import random

import pytest
from random_walk import Walk
from tracing import eager_graphs


def test_whatever_is_done_both_pipelines_draw_the_same() -> None:
    pytest.importorskip("peft")
    with eager_graphs():
        walk = Walk(random.Random(1))
        walk.run(2)
    assert walk.done.total() == 2
