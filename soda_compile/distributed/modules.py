"""Modules that PyTorch spreads over processes: what can be compiled of them."""

import sys
from typing import Any

import torch

from soda_compile.errors import OptionError


def unwrapped(model: Any) -> Any:
    """Return the module inside a DistributedDataParallel, which calls it; any other as it is."""
    wrapper = getattr(sys.modules.get("torch.nn.parallel.distributed"), "DistributedDataParallel", None)
    return model.module if wrapper is not None and isinstance(model, wrapper) else model


def require_whole_graph(model: torch.nn.Module) -> None:
    """Check that no part of a model fetches its weights in a hook of its own, which Dynamo leaves out of graphs.

    Raises:
        OptionError: Naming the first part that does.
    """
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)  # none exists where it is not loaded
    parts = [path for path, child in model.named_modules() if path and kind is not None and isinstance(child, kind)]
    if parts:
        raise OptionError(
            f"{parts[0]} in {type(model).__name__} is sharded by fully_shard on its own ({len(parts)} such parts), and "
            "the hooks that fetch its weights cannot be captured, so there is no graph of the whole model; call "
            "fully_shard on the model alone, spread its weights by tensor parallelism (parallelize_module), or compile "
            "the forward of each part by a plan of its own (docs/distributed.md)"
        )
