"""Fewer steps of other samplers, at equal function evaluations."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.leaderboard.installed import Installed
from benchmarks.leaderboard.method import Method
from benchmarks.leaderboard.subject import Sampler, Subject
from benchmarks.leaderboard.tuning import Search, Setting, counts


def _install(make: Callable[[Any], Any], steps: int, subject: Subject) -> Installed:
    pipe = subject.fresh()
    pipe.scheduler = make(pipe.scheduler)
    return Installed(pipe, steps)


def methods(subject: Subject) -> list[Method]:
    """One for each sampler of a subject."""

    def searches(sampler: Sampler) -> Callable[[Subject, Sequence[int]], list[Search]]:
        def of(own: Subject, seeds: Sequence[int]) -> list[Search]:
            return [
                counts(lambda steps, make=make, text=text: Setting(  # type: ignore[misc]
                    f"{steps} steps, {text}", lambda it: _install(make, steps, it)), own.steps, 2)
                for text, make in sampler.variants.items()
            ]  # fmt: skip

        return of

    return [
        Method(f"fewer steps, {each.name}", "fewer steps", "diffusers", searches(each)) for each in subject.samplers
    ]
