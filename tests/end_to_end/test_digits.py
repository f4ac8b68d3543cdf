"""The shipped digits model: it loads, repeats itself, draws what it is asked for, and is small."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from soda_compile.digits.classifier import DigitClassifier, accuracy, frechet_distance, load_classifier
from soda_compile.digits.pipeline import WEIGHTS, DigitsPipeline, load

LABELS = [index % 10 for index in range(20)]


@pytest.fixture(scope="module")
def pipeline() -> DigitsPipeline:
    return load()


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return load_classifier()


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed * 1000 + index) for index in range(count)]


def test_weights_load_in_float32_and_are_small(pipeline: DigitsPipeline) -> None:
    assert {parameter.dtype for parameter in pipeline.transformer.parameters()} == {torch.float32}
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) < 5_000_000
    assert not pipeline.transformer.training


def test_a_seed_decides_the_sample(pipeline: DigitsPipeline) -> None:
    first, again, other = (
        pipeline([3, 7], num_inference_steps=4, generator=generators(2, seed)).images for seed in (0, 0, 1)
    )
    assert first.shape == (2, 8, 8, 1)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_samples_show_the_digits_asked_for(pipeline: DigitsPipeline, classifier: DigitClassifier) -> None:
    images = pipeline(LABELS, generator=generators(len(LABELS)), num_inference_steps=20, output_type="pt").images
    assert accuracy(classifier, images * 2 - 1, torch.tensor(LABELS)) > 0.8


def test_the_classifier_knows_digits_it_has_not_seen(classifier: DigitClassifier) -> None:
    pytest.importorskip("sklearn")
    from soda_compile.digits.data import load_split

    train, held_out = load_split()
    assert len(train) == 1437
    assert len(held_out) == 360
    assert accuracy(classifier, held_out.images, held_out.labels) > 0.95


def test_guidance_is_one_call_per_step(pipeline: DigitsPipeline) -> None:
    batches: list[list[int]] = []

    def record(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        assert kwargs["timestep"].shape == kwargs["class_labels"].shape
        batches.append(kwargs["class_labels"].tolist())

    with pipeline.transformer.register_forward_pre_hook(record, with_kwargs=True):
        pipeline([4, 2], num_inference_steps=3)
        pipeline([4, 2], guidance_scale=1.0, num_inference_steps=2)
    assert batches == [[4, 2, 10, 10]] * 3 + [[4, 2]] * 2


def test_the_callback_sees_every_step_and_may_change_the_latents(pipeline: DigitsPipeline) -> None:
    seen: list[int] = []

    def blank(pipe: DigitsPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
        seen.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = pipeline([1], num_inference_steps=3, output_type="pt", callback_on_step_end=blank).images
    assert seen == [0, 1, 2]
    assert torch.equal(images, torch.full((1, 1, 8, 8), 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": [3, 10]}, "0..9"),
        ({"class_labels": []}, "one or more"),
        ({"class_labels": [1], "output_type": "jpeg"}, "jpeg"),
        ({"class_labels": [1, 2], "generator": generators(3)}, "3 generators for 2"),
    ],
)
def test_bad_arguments_are_named(pipeline: DigitsPipeline, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_frechet_distance_of_known_gaussians() -> None:
    points = np.random.default_rng(0).normal(size=(500, 3))
    assert frechet_distance(points, points) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points, points + np.array([3, 0, 4])) == pytest.approx(25)
    spread = np.trace(np.cov(points, rowvar=False))  # doubling a set moves it by its mean and its deviation
    assert frechet_distance(points, 2 * points) == pytest.approx(spread + (points.mean(0) ** 2).sum())
    with pytest.raises(ValueError, match="got"):
        frechet_distance(points, points[:, :2])
