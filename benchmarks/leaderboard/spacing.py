"""Which steps are computed in full, where that is fixed beforehand."""


def spread(steps: int, count: int, warm_up: int = 1) -> tuple[bool, ...]:
    """For each step whether it is computed: the first ``warm_up``, and the others spread evenly over what is left.

    A fixed interval is the special case in which the count divides the steps. Any count is allowed, so that a method
    can use up a budget.
    """
    if not 1 <= warm_up <= count <= steps:
        raise ValueError(f"warm_up is {warm_up}, count {count} and steps {steps}; they must not fall, from 1 on")
    # The last step of the warm-up is the first of the even ones.
    even = count - warm_up + 1
    rest = steps - warm_up + 1
    computed = set(range(warm_up)) | {warm_up - 1 + index * rest // even for index in range(even)}
    return tuple(step in computed for step in range(steps))
