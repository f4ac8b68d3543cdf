"""The sampler of the photographs model: the one of the digits, with other weights."""

from pathlib import Path

import torch

from soda_compile.digits.pipeline import DigitsPipeline
from soda_compile.digits.pipeline import load as load_folder

WEIGHTS = Path(__file__).parent / "weights"

__all__ = ["WEIGHTS", "DigitsPipeline", "load"]


def load(dtype: torch.dtype = torch.float32, folder: Path = WEIGHTS) -> DigitsPipeline:
    """Load the trained pipeline from disk, without the network and without its progress bar.

    It draws crops of 64x64 pixels; class_labels index examples.photos.data.PHOTOGRAPHS.

    Args:
        dtype: dtype of the transformer's weights, which are stored in float16.
        folder: a folder in the layout of ``DiffusionPipeline.save_pretrained``.

    Raises:
        FileNotFoundError: if ``folder`` holds no pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"no pipeline in {folder}: make one with python -m examples.photos.train")
    return load_folder(dtype, folder)
