"""Diffusers pipelines on a GPU, accelerated: against hooks in eager mode, and with what users do to them there."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_map_only

pytest.importorskip("diffusers")

from pipelines import PIPELINES, SMALL_SD3, STEPS, TinyPipeline, planned_by_hooks, sd3_plan
from random_plans import random_plan

import soda_compile


def draw(tiny: TinyPipeline, pipe: Any, seed: int = 0, **options: Any) -> Tensor:
    """As ``TinyPipeline.draw``, with prompts on the GPU."""
    arguments = {"num_inference_steps": STEPS, **tiny.inputs(Generator().manual_seed(7), 1), **options}
    dtype = pipe.transformer.dtype

    def move(value: Tensor) -> Tensor:
        return value.to("cuda", dtype if value.is_floating_point() else value.dtype)

    moved = tree_map_only(Tensor, move, arguments)
    sample = pipe(**moved, generator=Generator().manual_seed(seed), return_dict=False)[0]
    return torch.as_tensor(sample).float().cpu()


def close(a: Tensor, b: Tensor, share: float = 2e-3) -> None:
    assert (a - b).norm() <= share * b.norm(), f"off by {((a - b).norm() / b.norm()).item():.2%}"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_generation_is_what_hooks_make_of_the_plan(name: str) -> None:
    tiny = PIPELINES[name]
    pipe = tiny.build().to("cuda")
    plan = random_plan(3, tuple(tiny.regions), STEPS)
    original = draw(tiny, pipe)
    with planned_by_hooks(pipe.transformer, tiny.regions, plan, tiny.calls_per_step):
        wanted = draw(tiny, pipe)
    soda_compile.accelerate(pipe, plan)
    close(draw(tiny, pipe), wanted)
    close(draw(tiny, pipe), wanted)
    assert (wanted - original).norm() > 1e-2 * original.norm()
    soda_compile.restore(pipe)
    close(draw(tiny, pipe), original, 1e-4)


def to_cuda(pipe: Any) -> None:
    pipe.to("cuda")


def offload_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload()


def offload_blocks(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(
        torch.device("cuda"), torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


def offload_leaves_with_a_stream(pipe: Any) -> None:
    pipe.transformer.enable_group_offload(
        torch.device("cuda"), torch.device("cpu"), offload_type="leaf_level", use_stream=True
    )


def cast_storage(pipe: Any) -> None:
    pipe.to("cuda")
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


@pytest.mark.parametrize("change", [to_cuda, offload_model, offload_blocks, offload_leaves_with_a_stream, cast_storage])
def test_memory_savers(change: Any) -> None:
    pipe, untouched = SMALL_SD3.build(), SMALL_SD3.build()
    change(pipe)
    untouched.to("cuda") if change is offload_leaves_with_a_stream else change(untouched)
    with planned_by_hooks(untouched.transformer, SMALL_SD3.regions, sd3_plan()):
        wanted = draw(SMALL_SD3, untouched)
    soda_compile.accelerate(pipe, sd3_plan())
    for _ in range(2):
        found = draw(SMALL_SD3, pipe)
        counted = soda_compile.stats(pipe)
        assert not counted["transformer"]["misses"], counted
        close(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    pipe = SMALL_SD3.build().to("cuda", dtype)
    with planned_by_hooks(pipe.transformer, SMALL_SD3.regions, sd3_plan()):
        wanted = draw(SMALL_SD3, pipe)
    soda_compile.accelerate(pipe, sd3_plan(), mode="reduce-overhead")
    for _ in range(4):
        close(draw(SMALL_SD3, pipe), wanted, 0.03)


def test_accelerate_measures_and_plans(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line, and what a second process would find; the same measurement as on a CPU, to rounding."""
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path))
    pipe = SMALL_SD3.build().to("cuda")
    original = draw(SMALL_SD3, pipe)

    def calls(seed: int) -> Any:
        return draw(SMALL_SD3, pipe, seed)

    on_gpu = soda_compile.calibrate(pipe, calls, generations=2)
    pipe.to("cpu")
    on_cpu = soda_compile.calibrate(pipe, lambda seed: SMALL_SD3.draw(pipe, seed), generations=2)
    pipe.to("cuda")
    a, b = (soda_compile.plan(each, speedup=1.5) for each in (on_gpu, on_cpu))
    assert a.regions == b.regions
    soda_compile.accelerate(pipe, a)
    found = draw(SMALL_SD3, pipe)
    assert 0 < (found - original).norm() < original.norm()
    counted = soda_compile.stats(pipe)
    assert not counted["transformer"]["misses"]
