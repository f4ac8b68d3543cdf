"""The same orders, one after another in a process of its own: by the original, by the plans, under torch.compile.

``python -m examples.serving.reference FOLDER SEEDS`` writes ``reference-SEEDS.safetensors`` to the folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file

from examples.serving.orders import STEPS, Order, catalogue
from examples.serving.replicas import Accelerated, Original, Plain, Replica
from soda_compile.storage.files import replaced

KINDS: dict[str, type[Replica]] = {"original": Original, "planned": Accelerated, "compiled": Plain}
FRESH_SEED = 1_000_000
"""Of generations that are not ordered: they say how far from the original a plan takes a picture."""


@dataclass(frozen=True)
class Reference:
    """Pictures of the catalogue.

    Attributes:
        pictures: By kind, then by order.
        told: By number of steps, the largest relative error of generations by its plan with other seeds.
    """

    pictures: dict[str, dict[Order, torch.Tensor]]
    told: dict[int, float]

    @classmethod
    def load(cls, folder: Path, seeds: int) -> "Reference":
        """Read what ``main`` wrote."""
        found, orders = load_file(reference_path(folder, seeds)), catalogue(seeds)
        pictures = {kind: {order: found[f"{kind}/{order.seed}"] for order in orders} for kind in KINDS}
        return cls(pictures, {steps: float(found[f"told/{steps}"]) for steps in STEPS})


def reference_path(folder: Path, seeds: int) -> Path:
    """Return where the pictures of a catalogue lie."""
    return folder / f"reference-{seeds}.safetensors"


def relative_errors(images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return for each picture the norm of what it is off, over that of the wanted one."""
    difference, wanted = (images - wanted).flatten(1).double(), wanted.flatten(1).double()
    errors: torch.Tensor = difference.norm(dim=1) / wanted.norm(dim=1)
    return errors


def main(folder: Path, seeds: int, fresh: Annotated[int, typer.Option(help="seeds of other generations")] = 8) -> None:
    """Draw all orders."""
    orders, others = catalogue(seeds), catalogue(fresh, FRESH_SEED)
    drawn: dict[str, torch.Tensor] = {}
    for kind, made in KINDS.items():
        replica = made(folder)
        for order in [*orders, *others]:
            drawn[f"{kind}/{order.seed}"] = replica.draw(order).contiguous()
    for steps in STEPS:
        pairs = [
            (drawn[f"planned/{each.seed}"], drawn[f"original/{each.seed}"]) for each in others if each.steps == steps
        ]
        drawn[f"told/{steps}"] = torch.stack([relative_errors(*pair).max() for pair in pairs]).max()
    with replaced(reference_path(folder, seeds)) as path:
        save_file(drawn, path)


if __name__ == "__main__":
    typer.run(main)
