"""Generations at the same time on one GPU: threads, streams, recorded graphs, outputs that the caller writes over."""

import threading
from typing import Any

import pytest
import torch
from small_denoiser import PLAN, TIMED, Call, Denoiser, calls, compiled, generate, reference, same
from threads import at_once

import soda_compile

MODES = (None, "reduce-overhead")
ROUNDING = {"rtol": 1e-3, "atol": 1e-4}


def given(seed: int, batch: int = 2) -> list[Call]:
    return [(x.cuda(), t.cuda()) for x, t in calls(seed, batch)]


def model() -> Denoiser:
    return Denoiser().cuda()


def denoiser_of(net: Denoiser, mode: str | None, **options: Any) -> Any:
    return compiled(net, plan=PLAN, **options, **({"mode": mode} if mode else {}))


@pytest.mark.parametrize("mode", MODES)
def test_threads_that_interleave_give_what_each_gives_alone(mode: str | None) -> None:
    net = model()
    denoiser = denoiser_of(net, mode)
    seeds = range(8)
    alone = {}
    for seed in seeds:
        with soda_compile.trajectory(denoiser):
            alone[seed] = generate(denoiser, given(seed))
    torch.testing.assert_close(alone[0], reference(net, PLAN, given(0)), **ROUNDING)
    wrong: list[int] = []
    barrier = threading.Barrier(len(seeds))

    def work(seed: int) -> None:
        barrier.wait(60)
        for _ in range(20):
            with soda_compile.trajectory(denoiser):
                if not torch.equal(generate(denoiser, given(seed)), alone[seed]):
                    wrong.append(seed)

    at_once(work, seeds, timeout=240)
    assert not wrong


@pytest.mark.parametrize("mode", MODES)
def test_streams_of_their_own(mode: str | None) -> None:
    denoiser = denoiser_of(model(), mode)
    wanted = {seed: generate(denoiser, given(seed)) for seed in range(4)}
    wrong: list[int] = []

    def work(seed: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            inputs = given(seed)
            for _ in range(10):
                with soda_compile.trajectory(denoiser):
                    found = generate(denoiser, inputs)
                torch.cuda.current_stream().synchronize()
                if not torch.equal(found, wanted[seed]):
                    wrong.append(seed)

    torch.cuda.synchronize()
    at_once(work, range(4), timeout=240)
    assert not wrong


@pytest.mark.parametrize("mode", MODES)
def test_the_caller_may_write_over_everything(mode: str | None) -> None:
    denoiser = denoiser_of(model(), mode)
    wanted = generate(denoiser, given(0))
    for _ in range(4):
        found = []
        for x, t in given(0):
            with torch.no_grad():
                output = denoiser(x, t)
            found.append(output.clone())
            for value in (output, x, t):
                value.fill_(1)
        same(torch.stack(found), wanted)


@pytest.mark.parametrize("mode", MODES)
def test_sizes_and_weights_that_change(mode: str | None) -> None:
    net = model()
    denoiser = torch.compile(net, backend="soda", options={"plan": TIMED, **({"mode": mode} if mode else {})})
    for _ in range(3):
        for batch in (1, 2, 3, 5):
            found = generate(denoiser, given(batch, batch))
            torch.testing.assert_close(found, reference(net, TIMED, given(batch, batch)), **ROUNDING)
    with torch.no_grad():
        net.last.weight.mul_(2)  # in place: recorded graphs read the new values
        net.blocks[0].mlp[0].weight = torch.nn.Parameter(net.blocks[0].mlp[0].weight * 2)  # at a new address
    for _ in range(3):
        torch.testing.assert_close(generate(denoiser, given(2, 2)), reference(net, TIMED, given(2, 2)), **ROUNDING)


def test_memory_does_not_grow() -> None:
    denoiser = denoiser_of(model(), "reduce-overhead")

    def allocated() -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    for turn in range(60):
        with soda_compile.trajectory(denoiser):
            generate(denoiser, given(turn))
        if turn == 20:
            before = allocated()
    assert allocated() <= before


def test_nothing_waits_for_the_device() -> None:
    """Once compiled: a call only launches, so that the host runs ahead."""
    denoiser = denoiser_of(model(), None)
    inputs = given(0)
    for _ in range(2):
        generate(denoiser, inputs)
    torch.cuda.synchronize()
    mode: Any = torch.cuda
    mode.set_sync_debug_mode("error")
    try:
        generate(denoiser, inputs)
    finally:
        mode.set_sync_debug_mode("default")
