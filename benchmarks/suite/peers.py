"""The caches of diffusers, forced to follow a mask by their own settings."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FBCHeadBlockHook, FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks.hooks import CacheContext, HookRegistry, ModelHook, StateManager, _set_cache_context
from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache
from diffusers.hooks.pyramid_attention_broadcast import (
    PyramidAttentionBroadcastConfig,
    PyramidAttentionBroadcastState,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from torch import nn

from benchmarks.suite.runner import Runner

FAR = 10**9
# Attentions and feed-forwards of the block lists; single-stream blocks of FLUX and HunyuanVideo as a whole, as there
# attention and feed-forward share the last projection.
BRANCHES = [r"(transformer_blocks|blocks)\.\d+\.(attn\d?|ff|ff_context|ffn)", r"single_transformer_blocks\.\d+"]


def first_block_cache(model: nn.Module, mask: tuple[bool, ...], interval: int) -> Runner:
    """The threshold is set before each call: every difference is above -1, none above infinity.

    The first block is always computed, and the decision is made on the host from a tensor, as it always is.
    """
    apply_first_block_cache(model, FirstBlockCacheConfig())
    [head] = [hook for hook in hooks_of(model) if isinstance(hook, FBCHeadBlockHook)]

    def begin_step(step: int) -> None:
        head.threshold = -1.0 if mask[step] else float("inf")

    return hooked(model, begin_step)


def mag_cache(model: nn.Module, mask: tuple[bool, ...], interval: int) -> Runner:
    """The calibrated ratios are 1 (no error) where a step is to be skipped, and enormous where it is computed."""
    ratios = torch.tensor([1e6 if computed else 1.0 for computed in mask])
    apply_mag_cache(
        model,
        MagCacheConfig(
            threshold=0.06, max_skip_steps=len(mask), retention_ratio=0.0, num_inference_steps=len(mask),
            mag_ratios=ratios,
        ),
    )  # fmt: skip
    return hooked(model)


def taylorseer(model: nn.Module, mask: tuple[bool, ...], interval: int) -> Runner:
    """Forecasts of first order of every attention and feed-forward, by its own interval."""
    settings = {"cache_identifiers": BRANCHES, "taylor_factors_dtype": _dtype(model)}
    apply_taylorseer_cache(model, _taylorseer_config(interval, **settings))
    return hooked(model)


def taylorseer_lite(model: nn.Module, mask: tuple[bool, ...], interval: int) -> Runner:
    """Its lite mode: blocks give zeros between computed steps, and only the last projection is forecast."""
    if not hasattr(model, "proj_out"):
        raise NotImplementedError("lite mode caches a module 'proj_out', which this model does not have")
    apply_taylorseer_cache(model, _taylorseer_config(interval, use_lite_mode=True, taylor_factors_dtype=_dtype(model)))
    return hooked(model)


def pyramid_attention_broadcast(model: nn.Module, mask: tuple[bool, ...], interval: int) -> Runner:
    """Attentions are kept at timesteps inside a range; the timestep it is told lies outside at computed steps.

    It keeps attentions only: feed-forwards are computed at every step.
    """
    told = {"timestep": 0}
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=FAR,
        temporal_attention_block_skip_range=FAR,
        cross_attention_block_skip_range=FAR,
        current_timestep_callback=lambda: told["timestep"],
    )
    apply_pyramid_attention_broadcast(model, config)

    def begin_step(step: int) -> None:
        told["timestep"] = 0 if mask[step] else 500

    return hooked(model, begin_step)


def hooked(model: nn.Module, begin_step: Callable[[int], None] = lambda step: None) -> Runner:
    """A model with hooks of diffusers, which are told which call of a step it is, once for a trajectory."""

    def reset() -> None:
        HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks()
        _set_cache_context(model, CacheContext("cond"))

    def held() -> Any:
        # A hook has its state in managers, or (PAB) in an attribute.
        values = [value for hook in hooks_of(model) for value in vars(hook).values()]
        managed = [value._state_cache for value in values if isinstance(value, StateManager)]
        return managed + [value.cache for value in values if isinstance(value, PyramidAttentionBroadcastState)]

    return Runner(model, reset=reset, begin_step=begin_step, held=held)


def hooks_of(model: nn.Module) -> list[ModelHook]:
    """All hooks in a model."""
    registries: list[Any] = [getattr(module, "_diffusers_hook", None) for module in model.modules()]
    return [hook for registry in registries if registry for hook in registry.hooks.values()]


def _taylorseer_config(interval: int, **settings: Any) -> TaylorSeerCacheConfig:
    return TaylorSeerCacheConfig(
        cache_interval=interval, disable_cache_before_step=1, max_order=1, **settings
    )  # fmt: skip


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def compiled(model: nn.Module) -> Any:
    """As users would compile it, but with room for what each hook makes Dynamo compile anew.

    Left at its default, the limit would send most of the modules with hooks back to eager mode.
    """
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(model)


PEERS = {
    "FirstBlockCache": first_block_cache,
    "MagCache": mag_cache,
    "TaylorSeer": taylorseer,
    "TaylorSeer lite": taylorseer_lite,
    "PAB": pyramid_attention_broadcast,
}
