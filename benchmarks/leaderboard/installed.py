"""What a method looks like to the measurement once it is applied."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _nothing() -> None:
    pass


@dataclass(frozen=True, eq=False)
class Installed:
    """A pipeline that runs a method.

    Attributes:
        pipe: The pipeline; its denoiser and its scheduler are its own.
        steps: To ask it for.
        reset: Forgets the last generation.
        held_bytes: Memory that is kept from step to step, after a generation.
        cost: Share of the FLOPs of the original, where the method counts it; else it is counted as it runs.
        close: Undoes what lives outside the pipeline.
    """

    pipe: Any
    steps: int
    reset: Callable[[], None] = _nothing
    held_bytes: Callable[[], int] = int
    cost: Callable[[], float] | None = None
    close: Callable[[], None] = _nothing
