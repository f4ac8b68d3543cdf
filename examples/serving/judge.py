"""Checks answers against the same orders drawn alone, and against the original."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from examples.serving.client import Answer
from examples.serving.reference import Reference, relative_errors

Outcome = Literal["drawn", "given up", "failed"]
ALONE = {"accelerated": "planned", "packages": "planned", "plain": "compiled"}
"""By service, the kind of reference that its pictures shall equal."""
ROUNDING = 1e-4
"""Largest difference of pixels in [0, 1] that counts as rounding."""
MARGIN = 2.0
"""Pictures of a plan count as far if they are so many times as far from the original as the worst of other seeds."""


@dataclass(frozen=True)
class Judged:
    """One order and what came of it.

    Attributes:
        service: Where it was sent.
        restarting: Whether replicas of the service were replaced meanwhile.
        seconds: Until the answer was there, or given up.
        outcome: What came.
        message: Why it failed.
        pictures: How many were ordered.
        steps: Of the sampler.
        equal: Whether the pictures are, bit for bit, those of the order drawn alone.
        difference: Largest difference to these, in a pixel.
        error: Largest relative error to the original.
        differs: Whether the first difference is more than rounding.
        far: Whether the second one is more than the plan was seen to make.
    """

    service: str
    restarting: bool
    seconds: float
    outcome: Outcome
    message: str
    pictures: int
    steps: int
    equal: bool = False
    difference: float = 0.0
    error: float = 0.0
    differs: bool = False
    far: bool = False


def judge(service: str, answer: Answer, reference: Reference, *, restarting: bool) -> Judged:
    """Compare what a client got with what it should have got."""
    order, images = answer.sent.order, answer.images
    outcome: Outcome = "drawn" if images is not None else "failed" if answer.error else "given up"
    about = (service, restarting, answer.seconds, outcome, answer.error, len(order.labels), order.steps)
    if images is None:
        return Judged(*about)
    kind = ALONE[service]
    alone, original = reference.pictures[kind][order], reference.pictures["original"][order]
    difference, error = float((images - alone).abs().max()), float(relative_errors(images, original).max())
    allowed = MARGIN * reference.told[order.steps] if kind == "planned" else ROUNDING
    return Judged(*about, torch.equal(images, alone), difference, error, difference > ROUNDING, error > allowed)


def summary(rows: Iterable[Judged]) -> dict[str, Any]:
    """Return the figures of some orders."""
    rows = list(rows)
    drawn = [row for row in rows if row.outcome == "drawn"]
    figures: dict[str, Any] = {"sent": len(rows), "drawn": len(drawn), "pictures": sum(row.pictures for row in drawn)}
    figures["given_up"] = sum(row.outcome == "given up" for row in rows)
    figures["failed"] = sum(row.outcome == "failed" for row in rows)
    figures["messages"] = sorted({row.message for row in rows if row.message})[:3]
    figures["differ"] = sum(row.differs for row in drawn)
    figures["far"] = sum(row.far for row in drawn)
    if drawn:
        seconds = np.percentile([row.seconds for row in drawn], (50, 90, 99))
        figures["latency_seconds"] = dict(zip(("p50", "p90", "p99"), map(float, seconds), strict=True))
        figures["equal_bits"] = sum(row.equal for row in drawn)
        figures["largest_difference"] = max(row.difference for row in drawn)
        figures["errors"] = {
            str(steps): {"mean": float(np.mean(errors)), "worst": max(errors)}
            for steps in sorted({row.steps for row in drawn})
            if (errors := [row.error for row in drawn if row.steps == steps])
        }
    return figures
