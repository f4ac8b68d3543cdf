"""The caches of diffusers, by their own rules and settings."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastConfig
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache

from benchmarks.leaderboard.installed import Installed
from benchmarks.leaderboard.method import Method
from benchmarks.leaderboard.stack_truth import stack_truth
from benchmarks.leaderboard.subject import Subject
from benchmarks.leaderboard.tuning import Search, Setting, thresholds
from benchmarks.suite.peers import FAR, hooked
from benchmarks.suite.runner import bytes_in


def _applied(apply: Callable[[Any], None], subject: Subject) -> Installed:
    pipe = subject.fresh()
    model = getattr(pipe, subject.denoiser)
    try:
        apply(model)
    except (KeyError, ValueError, IndexError) as error:
        raise NotImplementedError(f"diffusers cannot apply it to {type(model).__name__}: {error}") from error
    runner = hooked(model)
    return Installed(pipe, subject.steps, runner.reset, lambda: bytes_in(runner.held()))


def _setting(text: str, apply: Callable[[Any], None]) -> Setting:
    return Setting(text, functools.partial(_applied, apply))


def _first_block(subject: Subject, seeds: Sequence[int]) -> list[Search]:
    def make(threshold: float) -> Setting:
        config = FirstBlockCacheConfig(threshold=threshold)
        return _setting(f"threshold {threshold:g}", lambda model: apply_first_block_cache(model, config))

    return [thresholds(make, 1e-3, 10.0, 65)]


def _magnitudes(subject: Subject, seeds: Sequence[int]) -> list[Search]:
    ratios = list(stack_truth(subject, seeds).ratios)

    def make(retention: float, limit: int, threshold: float) -> Setting:
        def apply(model: Any) -> None:
            apply_mag_cache(model, MagCacheConfig(threshold, limit, retention, subject.steps, list(ratios)))

        return _setting(f"threshold {threshold:g}, retention {retention:g}, at most {limit} in a row", apply)

    pairs = [(retention, limit) for retention in (0.04, 0.1, 0.2) for limit in (3, 8, subject.steps)]
    return [thresholds(functools.partial(make, *pair), 1e-4, 30.0) for pair in pairs]


def _taylorseer(order: int, subject: Subject, seeds: Sequence[int]) -> list[Search]:
    def make(warm_up: int, interval: int) -> Setting:
        def apply(model: Any) -> None:
            dtype = next(model.parameters()).dtype
            apply_taylorseer_cache(model, TaylorSeerCacheConfig(
                cache_interval=interval, disable_cache_before_step=warm_up, max_order=order,
                cache_identifiers=[subject.branches], taylor_factors_dtype=dtype,
            ))  # fmt: skip

        return _setting(f"interval {interval}, warm-up {warm_up}", apply)

    return [[make(warm_up, interval) for interval in range(1, subject.steps // 2)] for warm_up in (1, 2, 3)]


def _attention_broadcast(subject: Subject, seeds: Sequence[int]) -> list[Search]:
    """It keeps attentions between timesteps 100 and 800 by default; here from the first on, which costs least."""
    from diffusers.hooks.pyramid_attention_broadcast import apply_pyramid_attention_broadcast

    def make(interval: int) -> Setting:
        def apply(model: Any) -> None:
            settings = PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=interval, cross_attention_block_skip_range=interval,
                spatial_attention_timestep_skip_range=(-1, FAR), cross_attention_timestep_skip_range=(-1, FAR),
                current_timestep_callback=lambda: 1,
            )  # fmt: skip
            apply_pyramid_attention_broadcast(model, settings)

        return _setting(f"interval {interval}", apply)

    return [[make(interval) for interval in (2, 3, 4, 6, 8, 12, 24)]]


def _taylor(order: int) -> Callable[[Subject, Sequence[int]], list[Search]]:
    return functools.partial(_taylorseer, order)


def _does_not_fit(why: str, subject: Subject, seeds: Sequence[int]) -> list[Search]:
    raise NotImplementedError(why)


FASTER = (
    "it takes the first half of the batch for the unconditional one and skips all of that, and reads its steps from a "
    "pipeline's current timestep; the pipelines here put the conditional half first or have no such attribute"
)
SEA = "its indicator needs latents of a video and an adapter, which diffusers has for Cosmos 3 alone"
SOURCE = "diffusers"
DIFFUSERS = (
    Method("diffusers, FirstBlockCache", "their code", SOURCE, _first_block),
    Method("diffusers, MagCache", "their code", SOURCE, _magnitudes, True),
    Method("diffusers, TaylorSeer, order 1", "their code", SOURCE, _taylor(1)),
    Method("diffusers, TaylorSeer, order 2", "their code", SOURCE, _taylor(2)),
    Method("diffusers, PAB", "their code", SOURCE, _attention_broadcast),
    Method("diffusers, FasterCache", "their code", SOURCE, functools.partial(_does_not_fit, FASTER)),
    Method("diffusers, SeaCache", "their code", SOURCE, functools.partial(_does_not_fit, SEA)),
)
