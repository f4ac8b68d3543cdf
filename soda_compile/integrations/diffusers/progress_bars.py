"""The progress bars of pipelines, left out where ours tells how far it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_CONFIG = "_progress_bar_config"  # where set_progress_bar_config of diffusers keeps it


@contextmanager
def without_progress_bar(pipe: Any) -> Iterator[None]:
    """Let a pipeline draw no bar of its own inside; how it was configured is kept."""
    if not hasattr(pipe, "set_progress_bar_config"):
        yield
        return
    before = vars(pipe).get(_CONFIG)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            delattr(pipe, _CONFIG)
        else:
            setattr(pipe, _CONFIG, before)
