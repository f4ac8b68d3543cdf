"""What makes Dynamo compile again within a generation does not end the generation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from subject import STEPS, Subject
from torch import Tensor
from tracing import statistics

import soda_compile


@pytest.fixture(scope="module")
def alone(subject: Subject) -> list[Tensor]:
    """A generation without recompilation."""
    torch._dynamo.reset()
    return subject.run(subject.compiled(), 0)


def run(subject: Subject, change: Callable[[int, Tensor, Tensor], tuple[Any, Any]]) -> list[Tensor]:
    """A generation whose inputs are changed before each call."""
    torch._dynamo.reset()
    compiled = subject.compiled()
    with torch.no_grad(), soda_compile.trajectory(subject.model) as generation:
        found = [compiled(*change(number, *step)) for number, step in enumerate(subject.steps(0))]
    assert not generation.tally.misses
    assert generation.tally.calls == STEPS
    return found


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_other_strides_from_a_step_on(subject: Subject, alone: list[Tensor], step: int):
    def change(number: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return (x.transpose(1, 2).contiguous().transpose(1, 2) if number >= step else x), t

    before = statistics(subject.model).compilations
    close(run(subject, change), alone)
    assert statistics(subject.model).compilations == before + 2


def test_strides_that_change_at_every_step(subject: Subject, alone: list[Tensor]):
    def change(number: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return (x.transpose(1, 2).contiguous().transpose(1, 2) if number % 2 else x), t

    close(run(subject, change), alone)


def test_modes_that_change(subject: Subject, alone: list[Tensor]):
    torch._dynamo.reset()
    compiled, found = subject.compiled(), []
    with soda_compile.trajectory(subject.model) as generation:
        for number, step in enumerate(subject.steps(0)):
            with torch.inference_mode() if number % 3 == 1 else torch.no_grad():
                found.append(compiled(*step).clone())
    close(found, alone)
    assert not generation.tally.misses


def test_hooks_that_come_and_go(subject: Subject, alone: list[Tensor]):
    torch._dynamo.reset()
    compiled, found = subject.compiled(), []
    with torch.no_grad(), soda_compile.trajectory(subject.model) as generation:
        for number, step in enumerate(subject.steps(0)):
            hook = subject.model.blocks[0].register_forward_hook(lambda *_: None) if number == 2 else None
            found.append(compiled(*step))
            if hook:
                hook.remove()
    close(found, alone)
    assert not generation.tally.misses


def test_other_sizes_begin_anew(subject: Subject):
    """Values of another resolution cannot be read: from there on the branch is one that joins late."""
    torch._dynamo.reset()
    compiled = subject.compiled()
    steps = [(x if number < 3 else x[:, :4], t) for number, (x, t) in enumerate(subject.steps(0))]
    with torch.no_grad(), soda_compile.trajectory(subject.model) as generation:
        found = [compiled(*step) for step in steps]
        torch.testing.assert_close(found[3], subject.model(*steps[3]), rtol=1e-5, atol=1e-5)
    assert not generation.tally.misses
