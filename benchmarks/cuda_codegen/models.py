"""The denoisers of true size, with the numbers of steps that their pipelines take by default."""

import math
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.suite.configs import TRUE_SIZE, Config, shortened
from benchmarks.suite.models import INPUTS, Maker


def _qwen(maker: Maker) -> dict[str, Any]:
    side = math.isqrt(maker.config.sample[0])
    return {
        "encoder_hidden_states": maker.text(),
        "encoder_hidden_states_mask": None,
        "img_shapes": [[(1, side, side)]] * maker.config.batch,  # frames, rows and columns of tokens
    }


INPUTS.setdefault("qwen", _qwen)
QWEN_CLASS = "QwenImageTransformer2DModel"
QWEN = Config(
    "qwen", "QwenImage 1024", "qwen", QWEN_CLASS, {"joint_attention_dim": 3584, "num_layers": 60},
    1, (4096, 64), 256,
)  # fmt: skip
_BY_NAME = {config.name: config for config in (*TRUE_SIZE, QWEN)}
_WAN14B = _BY_NAME["wan14b"]


@dataclass(frozen=True)
class Subject:
    """A denoiser and how often it is called.

    Attributes:
        config: The denoiser and its call.
        steps: Steps of a generation.
        branches: Branches of guidance that are calls of their own, each with slots of its own.
    """

    config: Config
    steps: int
    branches: int = 1

    def with_layers(self, share: float) -> "Subject":
        """The denoiser with a share of its layers, at true width."""
        return self if share == 1 else replace(self, config=shortened(self.config, share))


SUBJECTS = {
    "dit": Subject(_BY_NAME["dit"], 50),
    "pixart": Subject(_BY_NAME["pixart"], 20),
    "sd3": Subject(_BY_NAME["sd3"], 28),
    "flux": Subject(_BY_NAME["flux"], 28),
    "wan14b": Subject(replace(_WAN14B, title="Wan 2.1 14B, 480p, 81 frames", sample=(16, 21, 60, 104)), 50, branches=2),
    "hunyuan": Subject(_BY_NAME["hunyuan"], 50),
    "qwen": Subject(QWEN, 50, branches=2),
}
WAN_720P = Subject(replace(_WAN14B, title="Wan 2.1 14B, 720p, 81 frames", sample=(16, 21, 90, 160)), 50, branches=2)
