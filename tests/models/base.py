"""What a tiny denoiser is in these tests: how it is made and called, and which residual modules it has.

A tree of regions is written from the model's source, not from the compiler's output. It maps blocks to their regions,
and each region to the modules whose outputs are its cut::

    {"transformer_blocks.*": {"attn": ("to_out.0", "to_add_out"), "ff": "net.2"}, "transformer_blocks.last": {...}}

A block is a path, where ``*`` stands for every child and ``last`` for the last; later entries replace earlier ones. A
region is the path of a module inside its block, empty for the block itself. A cut is a path inside the region, empty
for the region's own output; one that begins with ``/`` is a path inside the block, and ``net.2@2`` is the second call
of a module in each step (``@1`` the first of several).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from families import Region
from torch import Tensor, nn

HEADS, HEAD_DIM = 2, 16
WIDTH = HEADS * HEAD_DIM
TEXT_TOKENS, TEXT_WIDTH, POOLED_WIDTH = 6, 24, 20

Case = tuple[nn.Module, dict[str, Any]]
Cuts = str | tuple[str, ...]
Tree = Mapping[str, Mapping[str, Cuts]]

ATTENTION: dict[str, Any] = {"num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM}
LTX2: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    **ATTENTION,
    "cross_attention_dim": WIDTH,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": TEXT_WIDTH,
    "rope_double_precision": False,
}  # of the video model and of its refiner

OUT = "to_out.0"  # where diffusers' attention ends
FF = "net.2"  # where its feed-forward ends
JOINT = ("to_out.0", "to_add_out")  # where an attention of two streams ends

SELF = {"attn1": OUT, "ff": FF}
CROSS = {"attn1": OUT, "attn2": OUT, "ff": FF}
DUAL = {"attn": JOINT, "ff": FF, "ff_context": FF}
HALF = {"attn": OUT, "ff": FF}  # the last block of two streams, where nothing reads the text any more
SINGLE = {"": "proj_out"}  # attention and feed-forward side by side share one projection


@dataclass(frozen=True)
class Denoiser:
    """A tiny random model of one class.

    Attributes:
        name: The class in diffusers.
        make: Makes the model and the keyword inputs of one call.
        tree: Its regions, see above.
        sample: Inputs that change from step to step because they are denoised.
        time: Inputs that tell the step.
        uninitialised: Ends of the names of parameters that the class leaves uninitialised.
        captured: What is expected of ``Finding.captured``.
        left: Last parts of the paths of heavy work inside blocks that is on the stream but in no region.
        note: Why it is captured so, or what else there is to know.
    """

    name: str
    make: Callable[[], Case]
    tree: Tree
    sample: tuple[str, ...] = ("hidden_states",)
    time: tuple[str, ...] = ("timestep",)
    uninitialised: tuple[str, ...] = ()
    captured: str = "whole"
    left: tuple[str, ...] = ()
    note: str = ""

    def build(self) -> Case:
        """The same weights on every call, eval mode, float32, no parameter left at zero or uninitialised."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, inputs = self.make()
            model = model.eval().float()
            for name, parameter in model.named_parameters():
                if not parameter.detach().any() or name.endswith(self.uninitialised):
                    nn.init.normal_(parameter, std=0.05)
        return model, inputs

    def trajectory(self, inputs: dict[str, Any], steps: int) -> list[dict[str, Any]]:
        """Inputs of ``steps`` calls: the sample turns by one radian, the time falls, all else stays."""
        generator = torch.Generator().manual_seed(1)
        directions = {key: _like(inputs[key], generator) for key in self.sample}
        calls = []
        for step in range(steps):
            angle = step / steps
            turned = {key: _turn(inputs[key], directions[key], angle) for key in self.sample}
            late = {key: (inputs[key] * (1 - angle)).to(inputs[key].dtype) for key in self.time if key in inputs}
            calls.append({**inputs, **turned, **late})
        return calls

    def regions(self, model: nn.Module) -> dict[str, Region]:
        """The tree with full names, and the cut modules of each region."""
        blocks = {}
        for pattern, regions in self.tree.items():
            for block in _blocks(pattern, model):
                blocks[block] = regions
        return {
            f"{block}.{name}" if name else block: Region(_cuts(block, name, cuts))
            for block, regions in blocks.items()
            for name, cuts in regions.items()
        }


DENOISERS: dict[str, Denoiser] = {}


def denoiser(name: str, tree: Tree, **settings: Any) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Registers a function that makes the tiny model of a class; ``settings`` are further fields of ``Denoiser``."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        DENOISERS[name] = Denoiser(name, make, tree, **settings)
        return make

    return register


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape)


def steps(batch: int) -> Tensor:
    """A timestep out of 1000."""
    return torch.full((batch,), 900, dtype=torch.int64)


def unit(batch: int) -> Tensor:
    """A noise level in (0, 1]."""
    return torch.full((batch,), 0.9)


def grid(frames: int, rows: int, columns: int) -> Tensor:
    """Positions [frames * rows * columns, 3], int64."""
    return torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))


def labels(batch: int) -> Tensor:
    return torch.randint(10, (batch,))


def text(batch: int, width: int = TEXT_WIDTH) -> dict[str, Any]:
    return {"encoder_hidden_states": noise(batch, TEXT_TOKENS, width)}


def _like(value: Any, generator: torch.Generator) -> Any:
    if isinstance(value, list):
        return [_like(item, generator) for item in value]
    return torch.randn(value.shape, generator=generator)


def _turn(start: Any, direction: Any, angle: float) -> Any:
    if isinstance(start, list):
        return [_turn(*pair, angle) for pair in zip(start, direction, strict=True)]
    return math.cos(angle) * start + math.sin(angle) * direction


def _blocks(pattern: str, model: nn.Module) -> list[str]:
    parent, _, leaf = pattern.rpartition(".")
    if leaf not in ("*", "last"):
        return [pattern]
    names = [f"{parent}.{name}" for name, _ in model.get_submodule(parent).named_children()]
    return names if leaf == "*" else names[-1:]


def _cuts(block: str, region: str, cuts: Cuts) -> tuple[str, ...]:
    inside = region.partition("#")[0]
    parts = [[block, cut[1:]] if cut.startswith("/") else [block, inside, cut] for cut in _tuple(cuts)]
    return tuple(".".join(filter(None, path)) for path in parts)


def _tuple(cuts: Cuts) -> tuple[str, ...]:
    return (cuts,) if isinstance(cuts, str) else cuts
