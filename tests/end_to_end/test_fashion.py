"""The shipped fashion models: they load, are small, draw what they are asked for, and can be accelerated."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from tracing import graphs_as_they_are

import soda_compile
from examples.fashion.classifier import agreement, load_classifier
from examples.fashion.data import load_split
from examples.fashion.evaluate import sample
from examples.fashion.example import example
from examples.fashion.pipeline import WEIGHTS, load_dit, load_flow
from soda_compile.planner.strategies import FixedInterval

LABELS = torch.arange(10)
STEPS = 12


@pytest.fixture(autouse=True)
def eager_lowering() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        graphs_as_they_are(patch)
        yield


@pytest.mark.thorough
@pytest.mark.parametrize("load", [load_dit, load_flow])
def test_samples_are_what_was_asked_for_with_and_without_a_plan(load) -> None:
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    judge, before = load_classifier(), sample(pipe, LABELS, 0, STEPS)
    assert agreement(judge, before, LABELS) >= 0.8
    assert agreement(judge, torch.randn_like(before), LABELS) < 0.5, "the judge sees clothes everywhere"
    sensitivity = soda_compile.calibrate(pipe, lambda seed: sample(pipe, LABELS[:2], seed, STEPS), generations=1)
    plan = soda_compile.plan(sensitivity, anchors=6, strategy=FixedInterval(operator="reuse"))
    soda_compile.accelerate(pipe, plan)
    found = sample(pipe, LABELS, 0, STEPS)
    counted = soda_compile.stats(pipe)["transformer"]
    assert not counted["misses"]
    assert counted["regions"]["reuse"] > 0
    assert 0 < (found - before).norm() < 0.5 * before.norm()
    assert agreement(judge, found, LABELS) >= 0.7


def test_weights_are_small_and_have_49_tokens() -> None:
    for folder in ("dit", "flow"):
        assert sum(file.stat().st_size for file in (WEIGHTS / folder).rglob("*") if file.is_file()) < 12_000_000
    for load in (load_dit, load_flow):
        config = load().transformer.config
        assert (config.sample_size // config.patch_size) ** 2 == 49


def test_the_example_is_a_call_of_the_model() -> None:
    model, inputs = example(2)
    with torch.no_grad():
        assert model(**inputs, return_dict=False)[0].shape == (4, 1, 28, 28)


def test_words_that_no_one_trained_are_refused() -> None:
    with pytest.raises(ValueError, match="'a red hat'"):
        load_flow()(["a red hat"])


def test_the_data_is_read_and_checked(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("t10k", 6)):
        pixels = bytes(range(256)) * (count * 784 // 256 + 1)
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels[: count * 784]
        labels = struct.pack(">II", 2049, count) + bytes(number % 10 for number in range(count))
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    train, held_out = load_split(tmp_path)
    assert (len(train), len(held_out)) == (12, 6)
    assert (train.images.min(), train.images.max()) == (-1, 1)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        load_split(tmp_path)
