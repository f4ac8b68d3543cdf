"""A model of random weights, as the leaderboard's benchmarks take it."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from diffusers import DDIMScheduler, DiTTransformer2DModel

from benchmarks.leaderboard.models import _labelled, _pixels, noise_samplers
from benchmarks.leaderboard.subject import Subject
from soda_compile.digits.pipeline import DigitsPipeline


@pytest.fixture(scope="module")
def subject() -> Subject:
    """One of six steps."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=3, sample_size=4, patch_size=1,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    pipe = DigitsPipeline(model, DDIMScheduler(clip_sample=False, timestep_spacing="trailing"))
    pipe.set_progress_bar_config(disable=True)
    return Subject("tiny", "", pipe, _labelled, _pixels, None, None, None, noise_samplers(), steps=6)
