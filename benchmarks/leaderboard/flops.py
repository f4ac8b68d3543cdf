"""FLOPs of a whole generation, counted as it runs in eager mode."""
# mypy: allow-untyped-calls

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class FlopCounter(TorchDispatchMode):
    """Counts products, convolutions and attention by torch's formulas.

    ``FlopCounterMode`` counts the same for each module too, which takes longer than small models do; and it does not
    know the fused attention of the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet is _CPU_ATTENTION:
            self.total += sdpa_flop_count(*(each.shape for each in args[:3]))
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def counted() -> Iterator[FlopCounter]:
    """Count what runs inside."""
    with FlopCounter() as counter:
        yield counter
