"""Fashion-MNIST (arXiv 1708.07747): 70,000 grey images of clothes in ten classes, read from its four idx files."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soda_compile.digits.data import LabelledImages

SIZE = 28
FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package dataset-fashion-mnist puts the files."""
NAMES = ("t-shirt top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
"""The words of each class; a label is an index into this tuple."""
_TRAIN, _TEST = "train", "t10k"
_IMAGES_MAGIC, _LABELS_MAGIC = 2051, 2049  # unsigned bytes in three axes, and in one


def load_split(folder: Path = FOLDER) -> tuple[LabelledImages, LabelledImages]:
    """Return the training split (60,000 images) and the test split (10,000).

    Args:
        folder: holds the four ``.gz`` files under the names they are published with.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, or is not what its name says.
    """
    for split in (_TRAIN, _TEST):
        for path in _paths(folder, split):
            if not path.is_file():
                raise FileNotFoundError(
                    f"no {path.name} in {folder}: get Fashion-MNIST with 'apt-get install dataset-fashion-mnist', "
                    "or name a folder with its four .gz files (--data)"
                )
    return _load(folder, _TRAIN), _load(folder, _TEST)


def _paths(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"{split}-images-idx3-ubyte.gz", folder / f"{split}-labels-idx1-ubyte.gz"


def _load(folder: Path, split: str) -> LabelledImages:
    image_path, label_path = _paths(folder, split)
    pixels, labels = _read_idx(image_path, _IMAGES_MAGIC), _read_idx(label_path, _LABELS_MAGIC)
    if pixels.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"{image_path}: images of {SIZE}x{SIZE} pixels expected, got {tuple(pixels.shape[1:])}")
    if len(pixels) != len(labels) or not len(labels):
        raise ValueError(f"{label_path}: a label per image expected, got {len(labels)} for {len(pixels)}")
    if int(labels.max()) >= len(NAMES):
        raise ValueError(f"{label_path}: labels in 0..{len(NAMES) - 1} expected, got {int(labels.max())}")
    return LabelledImages(pixels[:, None].float() / 127.5 - 1, labels.long())


def _read_idx(path: Path, magic: int) -> Tensor:
    """Read unsigned bytes: a big-endian magic number whose last byte counts the axes, their lengths, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: not a whole gzip file: {error}") from error
    if len(content) < 4 or struct.unpack(">I", content[:4]) != (magic,):
        raise ValueError(f"{path}: not an idx file with magic number {magic}")
    axes = magic & 0xFF
    values = content[4 + 4 * axes :]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes]) if len(content) >= 4 + 4 * axes else ()
    if not shape or math.prod(shape) != len(values):
        raise ValueError(f"{path}: {len(values)} values in a file of shape {shape}")
    return torch.from_numpy(np.frombuffer(values, dtype=np.uint8).copy()).reshape(shape)
