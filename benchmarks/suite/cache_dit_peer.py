"""cache-dit, forced to follow a mask by ``steps_computation_mask``."""

from typing import Any

import cache_dit  # type: ignore[import-untyped]
from torch import nn

from benchmarks.suite.runner import Runner


def dual_block_cache(model: nn.Module, mask: tuple[bool, ...], forecast: bool = False) -> Runner:
    """DBCache with the fewest blocks that are always computed (the first), and its static policy.

    The static policy decides by the mask alone and so spares the measure of how much the first block changed, which
    the default one waits for at every step: this is the fastest that it can be.

    Args:
        model: The denoiser; cache-dit knows its blocks by its class.
        mask: For each step whether it is computed.
        forecast: Forecast the kept residual with its TaylorSeer calibrator of first order, instead of reusing it.
    """
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=0, num_inference_steps=len(mask),
        steps_computation_mask=[int(computed) for computed in mask], steps_computation_policy="static",
        enable_separate_cfg=False,
    )  # fmt: skip
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if forecast else None
    cache_dit.enable_cache(_known(model), cache_config=config, calibrator_config=calibrator)

    def reset() -> None:
        cache_dit.refresh_context(model, cache_config=config, calibrator_config=calibrator, verbose=False)

    def held() -> Any:
        cached: Any = model
        return [cached._context_manager.get_context(name) for name in cached._context_names]

    return Runner(model, reset=reset, held=held)


def _known(model: nn.Module) -> Any:
    """The model, or what its registry says of the pipeline where it does not know the model's class by itself."""
    if type(model).__name__ != "SD3Transformer2DModel":
        return model
    return cache_dit.BlockAdapter(
        transformer=model, blocks=model.transformer_blocks, forward_pattern=cache_dit.ForwardPattern.Pattern_1
    )


def whole(model: nn.Module, cuda_graphs: bool = False) -> Any:
    """Compiled as its guide says: ``set_compile_configs``, then ``torch.compile`` of the denoiser with the cache."""
    import torch

    cache_dit.set_compile_configs(cuda_graphs=cuda_graphs)
    return torch.compile(model, mode="reduce-overhead" if cuda_graphs else None)


def blocks(model: Any) -> Any:
    """Compiled as its examples do where the class allows: block by block."""
    cache_dit.set_compile_configs()
    model.compile_repeated_blocks()
    return model
