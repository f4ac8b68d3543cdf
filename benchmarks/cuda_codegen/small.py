"""Denoisers so small that Triton's interpreter can run their kernels, with the blocks of the large ones."""

from benchmarks.cuda_codegen.models import QWEN_CLASS
from benchmarks.suite.configs import (
    _DIT,
    _FLUX,
    _HUNYUAN,
    _PIXART,
    _SD3,
    _WAN,
    Config,
    _dit,
    _flux,
    _hunyuan,
    _pixart,
    _sd3,
    _wan,
)

_QWEN = {"num_attention_heads": 2, "num_layers": 2, "joint_attention_dim": 32}
SMALL = {
    "dit": Config("dit", "DiT, 2 of 32", "dit", _DIT, _dit(8, 2, 16, 2), 2, (4, 8, 8)),
    "pixart": Config("pixart", "PixArt, 2 of 32", "pixart", _PIXART, _pixart(8, 2, 16, 2, 32), 2, (4, 8, 8), 8),
    "sd3": Config("sd3", "SD3.5, 2 of 128", "sd3", _SD3, _sd3(8, 2, 2, 32, 32), 2, (16, 8, 8), 8),
    "flux": Config("flux", "FLUX, 1+2 of 256", "flux", _FLUX, _flux(2, 1, 2, 32, 32), 1, (16, 64), 8),
    "wan": Config("wan", "Wan, 2 of 256", "wan", _WAN, _wan(2, 512, 2, 32), 1, (16, 1, 8, 8), 8),
    "hunyuan": Config(
        "hunyuan", "HunyuanVideo, 1+2 of 256", "hunyuan", _HUNYUAN, _hunyuan(2, 1, 2, 32, 32), 1, (16, 1, 8, 8), 8
    ),
    "qwen": Config("qwen", "QwenImage, 2 of 256", "qwen", QWEN_CLASS, _QWEN, 1, (16, 64), 8),
}
