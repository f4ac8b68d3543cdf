"""How much memory is free for kept values, where a model is."""

import psutil
import torch

SHARE = 0.5  # the rest is for the model's own work, and for whoever else wants some


def free_bytes(device: torch.device) -> int:
    """Return half of the memory that is free on a device, of the machine's where it is the CPU's."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE * (free + cached))
    return int(SHARE * psutil.virtual_memory().available)
