"""Freed memory of the subgraphs of a step, in the host's allocator."""

import torch


def keep_freed_memory(device: torch.device) -> None:
    """Let glibc keep what a subgraph frees for the next one, which otherwise faults all pages in anew, step by step.

    It gives memory back beyond a threshold of twice the largest block that was freed so far, if below 32 MiB; a process
    may never have freed a large one. The block here is never touched. Concerns the whole process, and the CPU only.
    """
    if device.type == "cpu":
        torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)
