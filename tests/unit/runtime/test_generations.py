"""Which generation a call belongs to: threads, tasks, generators, nesting, and what stays behind."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import torch
from subject import STEPS, Subject
from threads import at_once
from torch import Tensor
from tracing import statistics

import soda_compile


@pytest.fixture(scope="module")
def compiled(subject: Subject) -> Callable[..., Tensor]:
    return subject.compiled()


@pytest.fixture(scope="module")
def alone(subject: Subject, compiled: Callable[..., Tensor]) -> list[list[Tensor]]:
    """Generations with nothing beside them; the plan makes them differ from the original."""
    found = [subject.run(compiled, seed) for seed in range(3)]
    assert not torch.allclose(found[0][-1], subject.plain(0)[-1], atol=1e-2)
    return found


@pytest.fixture(autouse=True)
def nothing_is_kept(subject: Subject) -> Iterator[None]:
    """Whatever happened, no slot is in use afterwards."""
    yield
    gc.collect()
    assert statistics(subject.model).budget.used_bytes == 0


def equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def progressive(subject: Subject, compiled: Callable[..., Tensor], seed: int) -> Iterator[Tensor]:
    """A sampler that yields after each step."""
    with soda_compile.trajectory(subject.model):
        for step in subject.steps(seed):
            with torch.no_grad():
                out = compiled(*step)
            yield out


def test_threads_have_generations_of_their_own(subject: Subject, compiled: Callable[..., Tensor], alone):
    results: dict[tuple[int, int], list[Tensor]] = {}
    errors: list[BaseException] = []
    barrier = threading.Barrier(3)

    def work(seed: int) -> None:
        barrier.wait(timeout=60)
        try:
            for turn in range(15):
                results[seed, turn] = subject.run(compiled, seed)
        except BaseException as error:
            errors.append(error)

    at_once(work, range(3))
    assert not errors
    assert len(results) == 45
    for (seed, _), found in results.items():
        equal(found, alone[seed])


def test_counted_calls_of_threads_do_not_mix(subject: Subject, compiled: Callable[..., Tensor], alone):
    """Without a trajectory each thread counts for itself."""
    turn = threading.Barrier(2)
    results: dict[int, list[Tensor]] = {0: [], 1: []}

    def work(seed: int) -> None:
        for step in subject.steps(seed):
            turn.wait(timeout=60)
            with torch.no_grad():
                results[seed].append(compiled(*step))

    at_once(work, range(2))
    for seed, found in results.items():
        equal(found, alone[seed])


@pytest.mark.parametrize("opened", [True, False])
def test_tasks_take_turns_at_every_step(subject: Subject, compiled: Callable[..., Tensor], alone, opened: bool):
    async def generate(seed: int) -> list[Tensor]:
        found = []
        with soda_compile.trajectory(subject.model) if opened else contextlib.nullcontext():
            for step in subject.steps(seed):
                with torch.no_grad():
                    found.append(compiled(*step))
                await asyncio.sleep(0)
        return found

    async def together() -> list[list[Tensor]]:
        return await asyncio.gather(*map(generate, range(3)))

    for seed, found in enumerate(asyncio.run(together())):
        equal(found, alone[seed])


def test_a_worker_thread_takes_the_generation_along(subject: Subject, compiled: Callable[..., Tensor], alone):
    async def generate(seed: int) -> list[Tensor]:
        with soda_compile.trajectory(subject.model):
            return [await asyncio.to_thread(torch.no_grad()(compiled), *step) for step in subject.steps(seed)]

    equal(asyncio.run(generate(1)), alone[1])


def test_generators_take_turns(subject: Subject, compiled: Callable[..., Tensor], alone):
    samplers = [progressive(subject, compiled, seed) for seed in range(3)]
    for seed, found in enumerate(zip(*zip(*samplers, strict=True), strict=True)):
        equal(list(found), alone[seed])


@pytest.mark.parametrize("reached", range(1, STEPS))
def test_an_abandoned_generator_leaves_nothing(subject: Subject, compiled: Callable[..., Tensor], alone, reached: int):
    sampler = progressive(subject, compiled, 1)
    for _ in range(reached):
        next(sampler)
    with torch.no_grad():
        equal([compiled(*step) for step in subject.steps(0)], alone[0])
    equal(subject.run(compiled, 2), alone[2])
    del sampler


def test_a_generator_goes_on_in_another_thread(subject: Subject, compiled: Callable[..., Tensor], alone):
    sampler = progressive(subject, compiled, 1)
    found = [next(sampler)]
    for _ in range(STEPS - 1):
        thread = threading.Thread(target=lambda: found.append(next(sampler)))
        thread.start()
        thread.join(timeout=60)
    equal(found, alone[1])
    sampler.close()


def test_generators_and_blocks_nest(subject: Subject, compiled: Callable[..., Tensor], alone):
    """The innermost is meant: the generator's inside it, the block's around it."""
    sampler, outer, inner = progressive(subject, compiled, 0), [], []
    with soda_compile.trajectory(subject.model), torch.no_grad():
        for step in subject.steps(1):
            inner.append(next(sampler))
            outer.append(compiled(*step))
            equal(subject.run(compiled, 2), alone[2])
    sampler.close()
    equal(inner, alone[0])
    equal(outer, alone[1])


def test_context_managers_made_of_generators_open_for_their_caller(
    subject: Subject, compiled: Callable[..., Tensor], alone
):
    @contextlib.contextmanager
    def wrapped() -> Iterator[None]:
        with soda_compile.trajectory(subject.model), torch.no_grad():
            yield

    @contextlib.asynccontextmanager
    async def wrapped_async() -> AsyncIterator[None]:
        with wrapped():
            yield

    async def generate() -> list[Tensor]:
        async with wrapped_async():
            return [compiled(*step) for step in subject.steps(2)]

    with wrapped():
        equal([compiled(*step) for step in subject.steps(0)], alone[0])
    with contextlib.ExitStack() as stack:
        stack.enter_context(wrapped())
        equal([compiled(*step) for step in subject.steps(1)], alone[1])
    equal(asyncio.run(generate()), alone[2])


def test_a_generation_is_entered_for_each_step_in_any_thread(subject: Subject, compiled: Callable[..., Tensor], alone):
    generations = [soda_compile.new_generation(subject.model) for _ in range(3)]
    results: list[list[Tensor]] = [[], [], []]

    def one_step(seed: int, step: int) -> None:
        with generations[seed], torch.no_grad():
            results[seed].append(compiled(*subject.steps(seed)[step]))

    for step in range(STEPS):
        for seed in range(3):
            thread = threading.Thread(target=one_step, args=(seed, step))
            thread.start()
            thread.join(timeout=60)
    for seed, found in enumerate(results):
        equal(found, alone[seed])


def test_a_cancelled_request_whose_thread_goes_on_disturbs_nobody(
    subject: Subject, compiled: Callable[..., Tensor], alone
):
    stopped, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with soda_compile.trajectory(subject.model), torch.no_grad():
            for number, step in enumerate(subject.steps(1)):
                compiled(*step)
                if number == 2:
                    stopped.set()
                    go_on.wait(timeout=60)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    stopped.wait(timeout=60)
    with soda_compile.trajectory(subject.model), torch.no_grad():
        found = [compiled(*step) for step in subject.steps(0)[:3]]
        go_on.set()
        done.wait(timeout=60)
        found += [compiled(*step) for step in subject.steps(0)[3:]]
    thread.join(timeout=60)
    equal(found, alone[0])


def test_an_ended_generation_runs_without_the_plan(subject: Subject, compiled: Callable[..., Tensor], alone):
    """A task that outlives the block of the one that started it."""

    async def late() -> Tensor:
        await asyncio.sleep(0)
        with torch.no_grad():
            return compiled(*subject.steps(0)[0])

    async def main() -> Tensor:
        with soda_compile.trajectory(subject.model):
            task = asyncio.ensure_future(late())
        return await task

    torch.testing.assert_close(asyncio.run(main()), alone[0][0], rtol=0, atol=0)


def test_memory_bounds_the_generations_under_way(subject: Subject, alone):
    """Beyond the bound generations run plain, and say so; those within are as alone."""
    compiled = subject.compiled()
    with soda_compile.trajectory(subject.model), torch.no_grad():
        compiled(*subject.steps(0)[0])
        one = statistics(subject.model).budget.used_bytes
    compiled = subject.compiled(slot_memory_bytes=2 * one)
    results: list[list[Tensor]] = [[], [], []]
    generations = [soda_compile.new_generation(subject.model) for _ in range(3)]
    for step in range(STEPS):
        for seed, generation in enumerate(generations):
            with generation, torch.no_grad():
                results[seed].append(compiled(*subject.steps(seed)[step]))
        assert statistics(subject.model).budget.used_bytes in (0, 2 * one)
    equal(results[0], alone[0])
    equal(results[1], alone[1])
    torch.testing.assert_close(results[2], subject.plain(2), rtol=1e-5, atol=1e-5)
    assert generations[2].tally.misses == {"memory": STEPS - 1}, "the others end first in the last step"
    assert "slot_memory_bytes" in soda_compile.stats(subject.model)["model"]["reasons"]["memory"]


def test_stats_say_what_was_done(subject: Subject, compiled: Callable[..., Tensor]):
    before = soda_compile.stats(compiled)["model"]
    subject.run(compiled, 0)
    after = soda_compile.stats(subject.model)["model"]
    assert after["calls"] == before["calls"] + STEPS
    actions = [action.kind for row in subject.plan.actions for action in row]
    done = {kind: after["regions"].get(kind, 0) - before["regions"].get(kind, 0) for kind in after["regions"]}
    assert done == {kind: actions.count(kind) for kind in after["regions"]}
    newest = after["generations"][max(after["generations"])]
    assert newest.pop("drift")["ratio"] is None, "a plan that no calibration made expects nothing"
    assert newest == {"calls": STEPS, "regions": {k: v for k, v in done.items() if v}, "misses": {}, "guarded": 0}
    assert after["compilations"] >= 1
    counted = soda_compile.stats(subject.model)
    text = str(counted)
    assert "Denoiser calls" in counted._repr_html_()
    for word in ("by plan", "reuse", "forecast", "slots", "graphs compiled"):
        assert word in text
