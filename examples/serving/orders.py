"""What clients order: some digits, in a number of steps."""

import itertools
import random
from dataclasses import dataclass
from typing import Any

import torch

STEPS = (10, 14, 20)
"""The step counts that are served. The largest one is measured; plans for the others are derived from that."""
SIZES = (1, 2)
"""Digits in one order: the batch of the pipeline."""


@dataclass(frozen=True)
class Order:
    """One picture, or several drawn together.

    Attributes:
        labels: The digits to draw.
        steps: Steps of the sampler.
        seed: Of the noise.
    """

    labels: tuple[int, ...]
    steps: int
    seed: int

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Order":
        """Read what a client sent.

        Raises:
            ValueError: It is no order, or one of a kind that is not served.
        """
        try:
            order = cls(tuple(map(int, data["labels"])), int(data["steps"]), int(data["seed"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"an order has labels, steps and a seed; {data!r} has not ({error!r})") from None
        if order.steps not in STEPS or len(order.labels) not in SIZES:
            raise ValueError(f"{order} is not served: steps can be {STEPS}, the number of labels {SIZES}")
        return order

    def call(self) -> dict[str, Any]:
        """Return the arguments of the pipeline."""
        generator = torch.Generator().manual_seed(self.seed)
        return {"class_labels": list(self.labels), "num_inference_steps": self.steps, "generator": generator}


def catalogue(seeds: int, first_seed: int = 1000) -> list[Order]:
    """Return orders of every step count and size, with so many seeds for each; no two are alike."""
    kinds = itertools.product(STEPS, SIZES, range(seeds))
    return [
        Order(tuple(random.Random(number).choices(range(10), k=size)), steps, first_seed + number)
        for number, (steps, size, _) in enumerate(kinds)
    ]
