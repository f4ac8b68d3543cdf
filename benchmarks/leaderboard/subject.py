"""A trained model as the leaderboard sees it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.leaderboard.spacing import spread

CALIBRATION = 1_000_000  # first of the seeds that methods are calibrated and tuned on; the scored ones begin at 0
ELSEWHERE = 2_000_000  # first of the seeds of the other set of originals, whose distance is the floor


@dataclass(frozen=True, eq=False)
class Sampler:
    """A sampler to run fewer steps with: its name, and the variants to try, by what distinguishes them."""

    name: str
    variants: Mapping[str, Callable[[Any], Any]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A pipeline with a trained denoiser, and its judges.

    Attributes:
        name: In options and results.
        title: What it is, with sampler, steps and guidance.
        pipe: A diffusers pipeline on its device.
        run: Latents [n, ...] of a pipeline for seeds and a number of steps; one noise and one label for each seed.
        decode: Images [n, c, h, w] in [0, 1] of a pipeline's latents.
        predict: Labels [n] of images.
        features: Of images [n, f], for the Fréchet distance.
        real: A number of real images in [0, 1].
        samplers: To run fewer steps with.
        batch: Samples that are run at once when scoring.
        labels: Number of labels, which take turns with the seeds.
        steps: Of the original.
        denoiser: Attribute of the pipeline.
        blocks: Attribute of the denoiser: its list of transformer blocks.
        branches: Regular expression of the modules whose outputs caches of attentions and feed-forwards keep.
    """

    name: str
    title: str
    pipe: Any
    run: Callable[[Any, Sequence[int], int], Tensor]
    decode: Callable[[Any, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    real: Callable[[int], Tensor]
    samplers: tuple[Sampler, ...]
    batch: int = 50
    labels: int = 10
    steps: int = 50
    denoiser: str = "transformer"
    blocks: str = "transformer_blocks"
    branches: str = r"transformer_blocks\.\d+\.(attn\d?|ff|ff_context)"

    @property
    def model(self) -> nn.Module:
        """The denoiser of the original pipeline."""
        model: nn.Module = getattr(self.pipe, self.denoiser)
        return model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def fresh(self) -> Any:
        """A pipeline with a denoiser and a scheduler of its own, and the other parts of the original."""
        parts = dict(self.pipe.components)
        for name in (self.denoiser, "scheduler"):
            parts[name] = copy.deepcopy(parts[name])
        pipe = type(self.pipe)(**parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def masks(self, count: int) -> list[tuple[str, tuple[bool, ...]]]:
        """Evenly spread masks of so many computed steps, by short and longer warm-ups."""
        warm_ups = [each for each in (1, 2, 3, 5) if each < count]
        return [(f"{count} steps, warm-up {each}", spread(self.steps, count, each)) for each in warm_ups]


def modules_at(subject: Subject, model: nn.Module) -> nn.ModuleList:
    """The blocks of a denoiser.

    Raises:
        NotImplementedError: If there is no such list.
    """
    blocks = getattr(model, subject.blocks, None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise NotImplementedError(f"{type(model).__name__} has no list of blocks {subject.blocks!r}")
    return blocks
