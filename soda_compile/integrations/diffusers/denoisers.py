"""Finds the denoisers of a diffusers pipeline, tells them apart, and says which cannot be accelerated."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from soda_compile.errors import OptionError
from soda_compile.integrations.diffusers.group_offload import hooks_of
from soda_compile.integrations.diffusers.layerwise_casting import CASTING, LORA
from soda_compile.torch_internals.sharded_tensors import has_sharded
from soda_compile.torch_internals.wrapped_tensors import flatten_inputs

DENOISERS = ("transformer", "transformer_2", "unconditional_transformer", "unet", "prior")
_CONTEXT_PARALLEL = ("cp_input---", "cp_output---")  # hooks, named after the layer
_SUPPORTED = ("layer_execution_tracker", CASTING, LORA, *_CONTEXT_PARALLEL)  # hooks, beside those of offloading
_NO_ARCHITECTURE = ("sample_size", "quantization_config")  # of a configuration
_SAMPLED = 8  # values of each parameter that go into the digest


def is_pipeline(value: Any) -> bool:
    """Return whether the value looks like a diffusers pipeline: it has a scheduler and a denoiser."""
    return hasattr(value, "scheduler") and any(getattr(value, name, None) is not None for name in DENOISERS)


def denoisers_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return the pipeline's denoisers by component name.

    Raises:
        OptionError: If there is none.
    """
    found = {name: getattr(pipe, name) for name in DENOISERS if getattr(pipe, name, None) is not None}
    if not found or not hasattr(pipe, "scheduler"):
        raise OptionError(
            f"{type(pipe).__name__} has no scheduler and denoiser ({', '.join(DENOISERS)}); "
            "compile its model by hand with torch.compile(model, backend='soda') and soda_compile.trajectory"
        )
    return found


def model_name(pipe: Any) -> str | None:
    """Return the name on the hub that a pipeline was loaded by; None for a local folder, or where it is not known."""
    config = getattr(pipe, "config", None)
    name = config.get("_name_or_path") if isinstance(config, Mapping) else None
    if not isinstance(name, str) or name.count("/") != 1 or name.startswith((".", "/", "~")) or os.path.exists(name):
        return None
    return name


def require_supported(name: str, module: torch.nn.Module) -> None:
    """Say before any work starts what cannot be accelerated, and the way out.

    Raises:
        OptionError: For a denoiser that is compiled, cached, or kept in a way that cannot be captured.
    """
    if hasattr(module, "_orig_mod"):
        raise OptionError(
            f"pipe.{name} is compiled already; assign its _orig_mod back: soda_compile compiles it itself"
        )
    if any(getattr(child, "_compiled_call_impl", None) is not None for child in module.modules()):
        raise OptionError(
            f"pipe.{name} or a part of it is compiled already (compile() or compile_repeated_blocks()); load the "
            "pipeline without that: soda_compile compiles it itself"
        )
    if getattr(module, "is_cache_enabled", False):
        raise OptionError(f"diffusers' own cache is on; call pipe.{name}.disable_cache() first")
    if any(parameter.device.type == "meta" for parameter in module.parameters()):
        raise OptionError(
            f"pipe.{name} has weights on the device meta, as sequential CPU offload leaves them, which cannot be "
            "captured; use pipe.enable_model_cpu_offload() or pipe.enable_group_offload(...)"
        )
    for path, child in module.named_modules():
        strange = [hook for hook in hooks_of(child) if "offloading" not in hook and not hook.startswith(_SUPPORTED)]
        if strange:
            raise OptionError(
                f"pipe.{name}{'.' * bool(path)}{path} has diffusers' hook {strange[0]!r}; remove it first"
            )


def require_unshared(name: str, module: torch.nn.Module) -> None:
    """Say before any work starts that a denoiser which several processes share cannot be measured by one.

    Raises:
        OptionError: If it is context or tensor parallel.
    """
    hooks = (hook for child in module.modules() for hook in hooks_of(child))
    if any(hook.startswith(_CONTEXT_PARALLEL) for hook in hooks) or has_sharded(list(module.parameters())):
        raise OptionError(
            f"several processes share pipe.{name}, and a search for plans, which measures where it finds none, is of "
            "one process; measure with soda_compile.calibrate(pipe, generate, model_group=group), plan with "
            "soda_compile.plan(..., process_group=group), and pass plan=; or pass measurement="
        )


def signature(module: torch.nn.Module) -> str:
    """Return a hash of the weights' names, shapes and types and of the configuration: cheap; a LoRA changes it."""
    weights = [(name, tuple(value.shape), str(value.dtype), type(value).__name__) for name, value in _weights(module)]
    config = {key: value for key, value in dict(getattr(module, "config", {})).items() if not key.startswith("_")}
    return digest_of([type(module).__name__, json.dumps(config, default=str, sort_keys=True), repr(weights)])


def architecture(module: torch.nn.Module) -> str:
    """Return a hash of the class and its configuration, which fine-tuning, a LoRA and quantisation leave alone.

    Where there is no configuration, names and shapes of the weights stand for it, without those of a LoRA.
    """
    config = {key: value for key, value in dict(getattr(module, "config", {})).items() if not key.startswith("_")}
    if config:
        shape = {key: value for key, value in config.items() if key not in _NO_ARCHITECTURE}
        return digest_of([type(module).__name__, json.dumps(shape, default=str, sort_keys=True)])
    weights = ((name.replace(".base_layer.", "."), tuple(value.shape)) for name, value in _weights(module))
    return digest_of([type(module).__name__, repr([entry for entry in weights if "lora_" not in entry[0]])])


def model_digest(module: torch.nn.Module) -> str:
    """Return a hash of the signature and of some values of every weight, which fine-tuning changes."""
    return digest_of([signature(module), *sampled_values(flatten_inputs([value for _, value in _weights(module)]))])


def sampled_values(weights: Iterable[torch.Tensor]) -> list[str]:
    """Return some values of every weight as text, device by device, read from each device at one go."""
    samples: dict[torch.device, list[torch.Tensor]] = {}
    for value in weights:
        if value.numel():
            flat = value.detach().reshape(-1)
            places = [number * (len(flat) - 1) // (_SAMPLED - 1) for number in range(_SAMPLED)]
            samples.setdefault(value.device, []).append(flat[places].float())
    return [torch.cat(values).cpu().numpy().tobytes().hex() for values in samples.values()]


def _weights(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return sorted(module.named_parameters(), key=lambda item: item[0])


def digest_of(parts: list[str]) -> str:
    """Return a short hash of texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
