"""cache-dit's DBCache with each of its calibrators, by its own rule of when to compute."""

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

from benchmarks.leaderboard.installed import Installed
from benchmarks.leaderboard.method import Method
from benchmarks.leaderboard.rules import masked
from benchmarks.leaderboard.subject import Subject, modules_at
from benchmarks.leaderboard.tuning import Search, Setting, thresholds
from benchmarks.suite.runner import bytes_in

CALIBRATORS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "no calibrator": None,
    "TaylorSeer, order 1": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 1}),
    "TaylorSeer, order 2": ("TaylorSeerCalibratorConfig", {"taylorseer_order": 2}),
    "FoCa": ("FoCaCalibratorConfig", {}),
    "DMD": ("DMDCalibratorConfig", {}),
}
WARM_UPS, LIMITS = (2, 4), (-1, 4)


def _install(options: dict[str, Any], calibrator: Any, subject: Subject) -> Installed:
    """The first block is always computed, as few as it allows, so that low costs can be reached."""
    import cache_dit  # type: ignore[import-untyped]

    from benchmarks.suite.cache_dit_peer import _known

    pipe = subject.fresh()
    model: Any = getattr(pipe, subject.denoiser)
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, num_inference_steps=subject.steps, enable_separate_cfg=False,
        **options,
    )  # fmt: skip
    made = None if calibrator is None else getattr(cache_dit, calibrator[0])(**calibrator[1])
    if made is not None and getattr(modules_at(subject, model)[-1], "context_pre_only", False):
        made.enable_encoder_calibrator = False  # the last block gives no text, which it would wait for in vain
    cache_dit.enable_cache(_known(model), cache_config=config, calibrator_config=made)

    def reset() -> None:
        cache_dit.refresh_context(model, cache_config=config, calibrator_config=made, verbose=False)

    def held() -> int:
        return bytes_in([model._context_manager.get_context(name) for name in model._context_names])

    return Installed(pipe, subject.steps, reset, held)


def _searches(calibrator: Any, subject: Subject, seeds: Sequence[int]) -> list[Search]:
    """Its threshold on the change of the first block, and its masks of computed steps, spread evenly."""
    if importlib.util.find_spec("cache_dit") is None:
        raise NotImplementedError("cache-dit is not installed; pip install soda-compile[bench]")

    def make(warm_up: int, limit: int, threshold: float) -> Setting:
        options = {"max_warmup_steps": warm_up, "residual_diff_threshold": threshold,
                   "max_continuous_cached_steps": limit}  # fmt: skip
        text = f"threshold {threshold:g}, warm-up {warm_up}" + (f", at most {limit} in a row" if limit > 0 else "")
        return Setting(text, functools.partial(_install, options, calibrator))

    def by_mask(mask: tuple[bool, ...], own: Subject) -> Installed:
        options = {"max_warmup_steps": 0, "steps_computation_mask": [int(each) for each in mask],
                   "steps_computation_policy": "static"}  # fmt: skip
        return _install(options, calibrator, own)

    pairs = [(warm_up, limit) for warm_up in WARM_UPS for limit in LIMITS]
    return [
        *(thresholds(functools.partial(make, *pair), 1e-3, 10.0) for pair in pairs),
        *masked(subject, by_mask, "mask of "),
    ]


CACHE_DIT = tuple(
    Method(f"cache-dit, {name}", "their code", "cache-dit, DBCache", functools.partial(_searches, calibrator))
    for name, calibrator in CALIBRATORS.items()
)
