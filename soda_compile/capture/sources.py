"""Paths in a model, from the Python expressions for where Dynamo found its parts."""

import re
from collections.abc import Iterable

_STORES = "_(?:modules|parameters|buffers)"  # where a module keeps what it holds
# What Dynamo goes through where a hook of diffusers has replaced the forward of a layer, up to the layer again.
_HOOKED = r"(?:(?:forward\.func\.__closure__\.\d+\.cell_contents|function_reference)\.)+forward\.__self__\."
# And where a layer's forward is compiled by itself, as engines do with repeated blocks.
_COMPILED = r"forward\._torchdynamo_inline\.__self__\."


def clean_path(source: str, root: str = "") -> str:
    """Return ``L['self']._modules['blocks']._modules['0']`` and its relatives as ``blocks.0``.

    Args:
        source: Where Dynamo found a value or a module.
        root: Where it found the denoiser: a variable, an attribute, the cell of a closure.
    """
    if root and (source == root or source.startswith((f"{root}.", f"{root}["))):
        source = "L['self']" + source.removeprefix(root)
    path = re.sub(rf"\.__dict__\[['\"]{_STORES}['\"]\]|\.{_STORES}(?=\[)", "", source)
    path = re.sub(r"^[LG]\[['\"](\w+)['\"]\]", r"\1", path)
    path = re.sub(r"\[['\"]?([^\]'\"]+)['\"]?\]", r".\1", path)
    path = re.sub(f"{_HOOKED}|{_COMPILED}", "", path)
    # fn is a root that has no forward of its own, a Sequential, or that forward; on the stack is super().forward
    return re.sub(r"^(?:self|kwargs|(?:fn|___stack\d+)\.__self__|fn)\.", "", path)


def root_of(sources: Iterable[str]) -> str:
    """Return where the module is whose parts hold all these parameters; empty if they are of several modules."""
    roots = {re.split(rf"\.__dict__\[['\"]{_STORES}|\.{_STORES}\[", source)[0] for source in sources}
    return roots.pop() if len(roots) == 1 else ""
