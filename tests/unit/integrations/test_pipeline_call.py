"""The numbers among the arguments of the pipeline call that drives a scheduler."""

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from soda_compile.integrations.diffusers.pipeline_call import call_of


class Scheduler:
    found: dict[str, Any] | None = None

    def set_timesteps(self) -> None:
        self.found = call_of(self)


class Pipeline:
    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7,
        class_labels: Any = None,
        original_size: Any = None,
        num_images_per_prompt: int = 1,
        decode_timestep: float = 0.5,
        strength: float = float("nan"),
        use_resolution_binning: bool = True,
        return_dict: bool = True,
        *,
        true_cfg_scale: float | None = None,
        **others: Any,
    ) -> dict[str, Any] | None:
        height = height or (None if image is not None else 64)
        self._begin()
        return self.scheduler.found

    def _begin(self) -> None:
        self.scheduler.set_timesteps()


def call(**arguments: Any) -> dict[str, Any] | None:
    return Pipeline(Scheduler())(**arguments)


def test_sizes_guidance_and_switches_with_the_defaults_of_the_pipeline() -> None:
    expected = {"guidance_scale": 7.0, "height": 64.0, "use_resolution_binning": True}
    assert call(prompt="a boat") == expected
    # What concerns the batch, the classes, the decoder, the result or the steps is none of it.
    others = {"num_images_per_prompt": 3, "class_labels": [1, 2], "decode_timestep": 0.1, "return_dict": False}
    assert call(**others, num_inference_steps=3) == expected
    found = call(height=32, width=16, true_cfg_scale=2, original_size=(8, 9), strength=0.5)
    more = {"height": 32.0, "width": 16.0, "true_cfg_scale": 2.0, "original_size": (8.0, 9.0), "strength": 0.5}
    assert found == {**expected, **more}


def test_a_picture_stands_for_the_size_that_is_not_given() -> None:
    picture = torch.zeros(2, 3, 24, 40)
    for image in (picture, [picture[0]], picture[0, 0]):
        found = call(image=image)
        assert found is not None
        assert found["image_size"] == (24.0, 40.0)
    pil = pytest.importorskip("PIL.Image")
    found = call(image=pil.new("RGB", (40, 24)))
    assert found is not None
    assert found["image_size"] == (24.0, 40.0)
    assert "image_size" not in (call(image=picture, height=8) or {})


def test_a_loop_of_ones_own_has_none() -> None:
    scheduler = Scheduler()
    scheduler.set_timesteps()
    assert scheduler.found == {}


def test_of_pipelines_that_call_each_other_the_one_with_the_scheduler_counts() -> None:
    class Outer(Pipeline):
        def __call__(self, height: int = 8) -> Any:  # type: ignore[override]
            return inner(height=32)

    inner = Pipeline(Scheduler())
    assert Outer(Scheduler())()["height"] == 32.0
