"""The steps whose values each action of a region's row reads."""

from collections.abc import Sequence

from soda_compile.plans.actions import Action


def reads(actions: Sequence[Action]) -> list[list[int]]:
    """Return for each step the earlier steps whose values it reads, newest first."""
    found: list[list[int]] = []
    computed: list[int] = []
    newest = 0
    for step, action in enumerate(actions):
        found.append(computed[::-1][: action.history] if action.kind == "forecast" else [newest] * action.history)
        if action.kind == "compute":
            computed.append(step)
        if action.kind in ("compute", "prune"):
            newest = step
    return found
