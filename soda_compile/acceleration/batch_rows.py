"""The rows of a batch that generations share: arguments divided among them, and outputs put together again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from soda_compile.errors import OptionError
from soda_compile.torch_internals.tracing import tree_flatten, tree_unflatten


@dataclass(frozen=True, eq=False)
class BatchRows:
    """The arguments of one call for several generations.

    Attributes:
        leaves: All values in the arguments.
        divided: Which of them are tensors with equally many rows for each generation.
        spec: How the arguments are made of them.
        each: Rows of a generation.
    """

    leaves: tuple[Any, ...]
    divided: tuple[bool, ...]
    spec: Any
    each: int

    @classmethod
    def of(cls, arguments: Mapping[Any, Any], shared: Collection[Any], generations: int) -> "BatchRows":
        """Look for the rows of ``generations`` in arguments; the first tensor tells how many there are.

        Raises:
            OptionError: They cannot be divided.
        """
        leaves, spec = tree_flatten(dict(arguments))
        own = [name not in shared for name, value in arguments.items() for _ in tree_flatten(value)[0]]
        sizes = [_rows(leaf) if mine else 0 for leaf, mine in zip(leaves, own, strict=True)]
        total = next(filter(None, sizes), 0)
        if not total or total % generations:
            raise OptionError(
                f"the first tensor has {total} rows for {generations} generations; each must have equally many"
            )
        return cls(tuple(leaves), tuple(size == total for size in sizes), spec, total // generations)

    def take(self, numbers: Sequence[int]) -> dict[Any, Any]:
        """Return the arguments for the generations of these numbers, which may repeat."""
        leaves = [
            torch.cat([leaf[number * self.each : (number + 1) * self.each] for number in numbers]) if divided else leaf
            for leaf, divided in zip(self.leaves, self.divided, strict=True)
        ]
        arguments: dict[Any, Any] = tree_unflatten(leaves, self.spec)
        return arguments

    def put_together(self, parts: Mapping[tuple[int, ...], Any]) -> Any:
        """Return one output from those of the calls that were made for parts of the generations."""
        numbers = [number for part in parts for number in part]
        place = {number: index for index, number in enumerate(numbers)}
        order = [place[number] * self.each + row for number in range(len(numbers)) for row in range(self.each)]
        flattened = [tree_flatten(output) for output in parts.values()]
        wanted = [len(part) * self.each for part in parts]
        leaves = []
        for values in zip(*(leaves for leaves, _ in flattened), strict=True):
            if [_rows(value) for value in values] == wanted:
                leaves.append(torch.cat(values)[order])
            else:  # the same for all
                leaves.append(values[0])
        return tree_unflatten(leaves, flattened[0][1])


def _rows(leaf: Any) -> int:
    return leaf.shape[0] if isinstance(leaf, torch.Tensor) and leaf.ndim else 0
