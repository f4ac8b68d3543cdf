"""The texts that a safetensors file holds beside its tensors; the library reads them from files, not from memory."""

import json


def metadata_of(data: bytes) -> dict[str, str]:
    """Return texts by name; empty if there are none.

    Raises:
        ValueError: If the data does not begin as a safetensors file does.
        AttributeError: If what it begins with is JSON, but no object.
    """
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__") or {}
