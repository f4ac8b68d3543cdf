"""Tensors as bytes in the safetensors format: written part by part, read in place from memory."""

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from soda_compile.errors import PackageError
from soda_compile.packages.manifest import dtype_name

# Subgraphs run as fast, and with the same rounding, on tensors that lie where torch would have put them.
ALIGNMENT = 64
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def named_dtype(name: str) -> torch.dtype:
    """Return ``torch.float32`` for ``float32``."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise PackageError(f"the package names the dtype {name!r}, which this torch does not have")
    return dtype


def pack(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in chunks; tensors of whole cache lines come first, so that these stay aligned.

    Raises:
        PackageError: For a dtype that the format does not have.
    """
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, -tensors[name].itemsize, name))
    header: dict[str, Any] = {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise PackageError(f"tensor {name} has dtype {dtype_name(tensor.dtype)}, which safetensors cannot store")
        stop = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        if tensors[name].nbytes:
            yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def unpack(data: memoryview) -> dict[str, torch.Tensor]:
    """Return tensors that share the memory of ``data``; the ones that would lie unaligned are copied.

    Args:
        data: A writable view of a safetensors file whose checksum was verified.
    """
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(bytes(data[8 : 8 + length]))
    body = data[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        if start == stop:
            tensors[name] = torch.empty(entry["shape"], dtype=dtype)
            continue
        flat = torch.frombuffer(body[start:stop], dtype=torch.uint8)
        if flat.data_ptr() % ALIGNMENT:
            flat = flat.clone()
        tensors[name] = flat.view(dtype).reshape(entry["shape"])
    return tensors


def laid_out(tensor: torch.Tensor, stride: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the tensor with these strides on this device; itself where that is so already."""
    if tensor.device == device and tensor.stride() == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device).copy_(tensor)
