"""Replaces a method on one object, for a while."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any


@dataclass(eq=False)
class MethodHook:
    """Stands in for a method of one object; a deep copy of the object gets the method itself back.

    Attributes:
        method: The bound method.
        function: What is called in its place.
    """

    method: MethodType
    function: Callable[..., Any]

    def __post_init__(self) -> None:
        functools.update_wrapper(self, self.method)  # pipelines look at signatures

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> MethodType:
        owner = self.method.__self__
        return MethodType(self.method.__func__, memo.get(id(owner), owner))

    def attach(self) -> "MethodHook":
        """Put it on the object; the class stays as it is."""
        setattr(self.method.__self__, self.method.__name__, self)
        return self

    def detach(self) -> None:
        """Take it off, unless somebody has replaced it since."""
        owner, name = self.method.__self__, self.method.__name__
        if owner.__dict__.get(name) is self:
            delattr(owner, name)
