"""Which steps are computed in full: the one mask that all methods of a comparison follow."""


def anchor_steps(steps: int, interval: int) -> tuple[int, ...]:
    """Steps 0 and 2, then every ``interval``-th: the family of masks that diffusers' TaylorSeer can follow.

    Its hook computes ``disable_cache_before_step`` steps, leaves one out, and computes one in ``cache_interval`` from
    there. A forecast of first order needs two computed steps, so a short interval at the start suits it anyway.
    """
    if steps < 1 or interval < 1:
        raise ValueError(f"steps is {steps} and interval {interval}; both must be at least 1")
    return (0, *range(2, steps, interval))


def computed(steps: int, interval: int | None) -> tuple[bool, ...]:
    """For each step whether all of it is computed; without an interval every step is."""
    anchors = range(steps) if interval is None else anchor_steps(steps, interval)
    return tuple(step in anchors for step in range(steps))
