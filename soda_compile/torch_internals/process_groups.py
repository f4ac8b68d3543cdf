"""Process groups by the names that graphs have for them, and the store where ranks leave notes for each other."""

from typing import Any

import torch.distributed as dist


def ranks_of(name: str) -> tuple[int, ...]:
    """Return the global ranks of the process group that a collective in a graph names."""
    from torch._C._distributed_c10d import _resolve_process_group

    return tuple(dist.get_process_group_ranks(_resolve_process_group(name)))  # type: ignore[arg-type]


def notes() -> Any:
    """Return the store that all ranks reach, whatever they are in; it waits as long as ``init_process_group`` said."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
