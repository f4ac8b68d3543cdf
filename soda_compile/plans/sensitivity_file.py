"""The file form of sensitivity data: named arrays in safetensors, one JSON header, one checksum over both."""

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from soda_compile.errors import SensitivityError
from soda_compile.storage.tensor_metadata import metadata_of

FORMAT = "soda-sensitivity/1"
Array = NDArray[Any]


def encode(header: dict[str, Any], arrays: dict[str, Array]) -> bytes:
    """Pack a JSON-able header and arrays; the header's key "format" is added here."""
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    return save_arrays(arrays, metadata={"soda": text, "sha256": _checksum(text, arrays)})


def decode(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Unpack what `encode` packed.

    Args:
        data: the whole file.

    Raises:
        SensitivityError: truncated or damaged, not sensitivity data, or of another format version.
    """
    try:
        arrays = load_arrays(data)
        metadata = metadata_of(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SensitivityError(f"truncated or damaged: {error}; calibrate again") from None
    try:
        text, checksum = metadata["soda"], metadata["sha256"]
        header = json.loads(text)
        version = header.pop("format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SensitivityError("not sensitivity data: its header is missing or damaged") from None
    if version != FORMAT:
        raise SensitivityError(f"format {version!r} is not known; this version reads {FORMAT!r}")
    if checksum != _checksum(text, arrays):
        raise SensitivityError("damaged: the checksum does not fit the content; calibrate again")
    return header, arrays


def _checksum(text: str, arrays: dict[str, Array]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
