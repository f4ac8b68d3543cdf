"""Whether a tensor still holds what it held before."""

import weakref
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Seen:
    """A tensor as it was.

    Attributes:
        tensor: The tensor.
        version: Number of writes to it, see ``version_of``.
        address: Where its numbers lie: ``tensor.data = other`` is no write.
        numbers: A copy, where numbers are compared.
    """

    tensor: "weakref.ref[torch.Tensor]"
    version: int | None
    address: int
    numbers: torch.Tensor | None

    @classmethod
    def of(cls, value: torch.Tensor, *, numbers: bool) -> "Seen":
        """Look at a tensor; ``numbers`` compares them where the host can, which takes a copy."""
        copy = value.clone() if numbers and on_host(value) else None
        return cls(weakref.ref(value), version_of(value), value.data_ptr(), copy)

    def is_still(self, value: torch.Tensor) -> bool:
        """Return whether a tensor surely holds the same."""
        if self.numbers is not None:
            return torch.equal(self.numbers, value)
        return (
            self.tensor() is value
            and self.version is not None
            and version_of(value) == self.version
            and value.data_ptr() == self.address
        )


def on_host(value: torch.Tensor) -> bool:
    """Return whether its numbers can be read without waiting for a device."""
    return value.device.type == "cpu"


def version_of(value: torch.Tensor) -> int | None:
    """Return the number of writes to a tensor; None for one born in inference mode, which does not count them."""
    return None if value.is_inference() else value._version
