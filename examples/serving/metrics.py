"""The page of metrics of a service, which is that of all its replicas, and its sums."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from soda_compile import Stats

_SAMPLE = re.compile(r'^(\w+)\{denoiser="[^"]*"(?:,\w+="([^"]*)")?\} (\S+)$', re.MULTILINE)


def page(states: Sequence[Mapping[str, Any]]) -> str:
    """Return one page for Prometheus: the label ``denoiser`` names the replica, and which of its pipelines.

    Args:
        states: Of each replica, with its name as ``replica`` and the statistics of its pipelines as ``stats``.
    """
    named = {f"{state['replica']}/{name}": each for state in states for name, each in state["stats"].items()}
    return Stats(named).prometheus()


def totals(text: str) -> dict[str, float]:
    """Return the sums over all replicas of what a page says, by metric and part; drift has no sum."""
    found = defaultdict[str, float](float)
    for name, part, value in _SAMPLE.findall(text):
        if "drift" not in name:
            found[f"{name}:{part}" if part else name] += float(value)
    return dict(found)
