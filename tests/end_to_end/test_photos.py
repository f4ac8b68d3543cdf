"""The shipped photographs model: it loads, is small, and draws crops of the photographs it is asked for."""

import json

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

from examples.photos.data import PHOTOGRAPHS, Photographs, load_photographs
from examples.photos.evaluate import blurred, coloured_noise
from examples.photos.judge import FEATURES, class_agreement, features, frechet_distance
from examples.photos.pipeline import WEIGHTS, load
from examples.photos.train import resumed
from soda_compile.digits.evaluate import sample

LABELS = torch.arange(20) % len(PHOTOGRAPHS)


@pytest.fixture(scope="module")
def photographs() -> Photographs:
    return load_photographs()


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    return sample(load(), len(LABELS), seed=0, steps=20, guidance=1.0, batch=20).images


def real(photographs: Photographs, seed: int, labels: torch.Tensor = LABELS) -> torch.Tensor:
    return photographs.crops(labels, torch.Generator().manual_seed(seed))


def test_weights_are_small_and_have_256_tokens() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 10_000_000
    config = load().transformer.config
    assert (config.sample_size // config.patch_size) ** 2 == 256


def test_the_loss_fell_while_training() -> None:
    curve = [point["loss"] for point in json.loads((WEIGHTS / "training.json").read_text())]
    assert curve[-1] < 0.5 * curve[1]


def test_training_goes_on_from_what_is_stored() -> None:
    model, curve = resumed(WEIGHTS)
    assert len({id(block.norm1.emb) for block in model.transformer_blocks}) == 1  # tied, as training needs it
    stored = load().transformer.state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert [point.step for point in curve] == sorted({point.step for point in curve})
    with pytest.raises(FileNotFoundError, match="no pipeline in"):
        resumed(WEIGHTS / "transformer")


def test_a_seed_decides_the_crops(photographs: Photographs) -> None:
    first, again, other = (real(photographs, seed) for seed in (0, 0, 1))
    assert first.shape == (20, 3, 64, 64)
    assert first.abs().max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.thorough
def test_the_judge_tells_crops_from_what_is_like_them(photographs: Photographs) -> None:
    labels = torch.arange(200) % len(PHOTOGRAPHS)
    crops, others = real(photographs, 0, labels), real(photographs, 1, labels)
    noise = coloured_noise(others, torch.Generator().manual_seed(0))
    assert features(crops).shape == (200, FEATURES)
    same, soft, softer, random = (
        frechet_distance(features(crops), features(images))
        for images in (others, blurred(others, 2), blurred(others, 4), noise)
    )
    assert same < soft / 4 < softer / 8 < random / 8
    assert class_agreement(others, labels, photographs) > 0.8
    assert class_agreement(noise, labels, photographs) < 0.5


@pytest.mark.thorough
def test_samples_are_near_the_photographs_asked_for(photographs: Photographs, samples: torch.Tensor) -> None:
    labels = torch.arange(200) % len(PHOTOGRAPHS)
    reference = features(real(photographs, 0, labels))
    near = frechet_distance(features(samples), reference)
    softer = frechet_distance(features(blurred(real(photographs, 1), 4)), reference)
    assert near < softer / 2
    assert class_agreement(samples, LABELS, photographs) > 0.7
