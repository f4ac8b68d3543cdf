"""What stands in for a method of one object stays with that object: its copies, pickled ones too, have the method."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

_STATE = "__getstate__"


class StandIn:
    """The function that is called in place of a method of one object.

    Attributes:
        method: The bound method.
        function: What is called in its place.
    """

    def __init__(self, method: MethodType, function: Callable[..., Any]) -> None:
        self.method, self.function = method, function
        functools.update_wrapper(self, method)  # pipelines look at signatures

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **options)

    def __copy__(self) -> MethodType:
        return self.method

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        owner = self.method.__self__
        return MethodType(self.method.__func__, memo.get(id(owner), owner))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.method.__reduce__()  # type: ignore[return-value]


def leave_out_of_copies(owner: Any) -> None:
    """Let an object's copies have what its class gives them where stand-ins are set on the object itself.

    A shallow copy takes the values of all attributes as they are, and none of them is asked. So the object is given a
    state of its own for ``copy`` and ``pickle``, which look for that on the object too.
    """
    if _STATE not in vars(owner):
        vars(owner)[_STATE] = functools.partial(_state, owner)


def keep_in_copies(owner: Any) -> None:
    """Take back ``leave_out_of_copies`` once no stand-in is left."""
    own = vars(owner).get(_STATE)
    if getattr(own, "func", None) is _state and not any(isinstance(value, StandIn) for value in vars(owner).values()):
        del vars(owner)[_STATE]


def _state(owner: Any) -> Any:
    kind: Any = type(owner)
    state = kind.__getstate__(owner)
    if isinstance(state, tuple):  # beside the attributes, the slots
        return (_without(owner, state[0]), *state[1:])
    return _without(owner, state) if isinstance(state, dict) else state


def _without(owner: Any, attributes: dict[str, Any] | None) -> dict[str, Any]:
    kept = {}
    for name, value in (attributes or {}).items():
        stands_in = isinstance(value, StandIn)
        if name != _STATE and not (stands_in and hasattr(type(owner), name)):
            kept[name] = value.method if stands_in else value
    return kept
