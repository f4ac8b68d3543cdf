"""The plug-ins for vLLM-Omni and SGLang: found by name, each request a generation, steps and branches kept apart."""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_stand_ins import (
    RUNTIME,
    DiffusionCacheConfig,
    Pipeline,
    Registry,
    counts_of,
    draw,
    guided,
    noise,
    under_hooks,
)
from engine_stand_ins import sglang as sglang
from engine_stand_ins import vllm_omni as vllm_omni
from small_denoiser import PLAN, STEPS, TWO_CALLS, Denoiser
from torch import Tensor, nn

from soda_compile import OptionError, Plan, PlanError
from soda_compile.engines import sglang as for_sglang
from soda_compile.engines import vllm_omni as for_vllm_omni

pytestmark = pytest.mark.usefixtures("eager")
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
Select = Callable[[str | None, Any], Any]


def by_hooks(plan: Plan, start: Tensor, guidance: bool) -> Tensor:
    """The same request by forward hooks, where each call of a step has values of its own."""
    calls = itertools.cycle(range(1 + guidance))
    hooked = under_hooks(Denoiser(), plan, lambda *_: next(calls))
    return draw(start, lambda x, t: guided(hooked, x, t) if guidance else hooked(x, torch.full((len(x),), t)))


@pytest.mark.parametrize("group", ["vllm_omni.general_plugins", "sglang.multimodal_gen.plugins"])
def test_engines_find_their_plug_in(group: str) -> None:
    (point,) = entry_points(group=group, name="soda")
    assert point.load() in (for_vllm_omni.register, for_sglang.register)


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("named", ["transformer", "denoiser"])
def test_a_request_of_vllm_omni_is_a_generation(vllm_omni: Select, guidance: bool, named: str) -> None:
    for _ in range(2):  # each process may load plug-ins several times
        for_vllm_omni.register()
    pipe = Pipeline(guidance, named)
    backend = vllm_omni("soda", DiffusionCacheConfig(plan=TWO_CALLS if guidance else PLAN))
    assert not backend.is_enabled()
    backend.enable(pipe)
    assert backend.is_enabled()
    for seed in range(2):
        backend.refresh(pipe, STEPS)
        wanted = by_hooks(PLAN, noise(seed), guidance)
        torch.testing.assert_close(pipe.forward(noise(seed)), wanted, **ROUNDING)
        assert not torch.allclose(wanted, Pipeline(guidance)(noise(seed)), atol=1e-3)
    counted = counts_of(getattr(pipe, named))
    assert (counted["calls"], counted["misses"], counted["slot_bytes"]) == (2 * STEPS * (1 + guidance), {}, 0)


def test_blocks_that_vllm_omni_compiled_before_follow_the_plan_too(vllm_omni: Select) -> None:
    for_vllm_omni.register()
    pipe = Pipeline()
    for block in pipe.transformer.blocks:
        block.forward = torch.compile(block.forward, backend="eager")
    vllm_omni("soda", {"plan": PLAN}).enable(pipe)
    torch.testing.assert_close(pipe.forward(noise()), by_hooks(PLAN, noise(), guidance=False), **ROUNDING)


def test_vllm_omni_keeps_its_own_cache_backends(vllm_omni: Select) -> None:
    for_vllm_omni.register()
    assert vllm_omni(None, None) is None
    with pytest.raises(ValueError, match="Unsupported cache backend: tea_cache"):
        vllm_omni("tea_cache", None)


def test_requests_of_vllm_omni_are_observed_and_then_accelerated(
    vllm_omni: Select, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path))
    for_vllm_omni.register()
    pipe, plain = Pipeline(guidance=True), Pipeline(guidance=True)
    config = {"speedup": 1.3, "generations": 3, "background": False}
    vllm_omni("soda", config).enable(pipe)
    errors = [float((pipe(noise(seed)) - plain(noise(seed))).norm()) for seed in range(7)]
    assert max(errors[:3]) < 1e-5
    assert min(errors[5:]) > 1e-4, errors
    assert all(error < 0.5 * float(plain(noise(0)).norm()) for error in errors)


def test_what_vllm_omni_cannot_use_is_said_at_once(vllm_omni: Select, tmp_path: Path) -> None:
    for_vllm_omni.register()
    with pytest.raises(OptionError, match="spedup"):
        vllm_omni("soda", DiffusionCacheConfig(spedup=2.0))
    with pytest.raises(PlanError, match=r"nothing\.json"):
        vllm_omni("soda", {"plan": str(tmp_path / "nothing.json")})
    with pytest.raises(OptionError, match="rel_l1_thresh"):
        vllm_omni("soda", DiffusionCacheConfig(rel_l1_thresh=0.3, speedup=2.0))
    for nothing in (None, {}, DiffusionCacheConfig()):
        assert vllm_omni("soda", nothing).options == {"speedup": 2.0}
    with pytest.raises(OptionError, match="no module by the name of transformer or transformer_2"):
        vllm_omni("soda", None).enable(nn.Module())


@pytest.fixture
def stage(sglang: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Starts a worker with a plan, and returns its stage of denoising."""

    def start(plan: Plan, *models: nn.Module, **settings: Any) -> Any:
        plan.save(tmp_path / "plan.json")
        monkeypatch.setenv(for_sglang.VARIABLE, json.dumps({"plan": str(tmp_path / "plan.json")}))
        for_sglang.register()
        sglang.apply()
        stages = sys.modules[f"{RUNTIME}.pipelines_core.stages.denoising"]
        return stages.DenoisingStage(*models, **settings)

    return start


@pytest.mark.parametrize("guidance", [False, True])
def test_a_request_of_sglang_is_a_generation(stage: Callable[..., Any], guidance: bool) -> None:
    model = Denoiser()
    denoising = stage(PLAN, model, guidance=guidance)
    for seed in range(2):
        found = denoising._run_denoising_loop(noise(seed))
        torch.testing.assert_close(found, by_hooks(PLAN, noise(seed), guidance), **ROUNDING)
    counted = counts_of(model)
    assert (counted["calls"], counted["misses"], counted["slot_bytes"]) == (2 * STEPS * (1 + guidance), {}, 0)


def test_two_denoisers_of_sglang_count_their_own_steps(stage: Callable[..., Any]) -> None:
    """The plan covers what each of them runs: two steps, and three, of the schedule."""
    first, second = Denoiser(), Denoiser(seed=1)
    rows = tuple(tuple(row[:3]) for row in PLAN.actions)
    denoising = stage(replace(PLAN, actions=rows), first, second, guidance=False)
    denoising._run_denoising_loop(noise())
    assert [counts_of(each)["calls"] for each in (first, second)] == [STEPS // 2, STEPS - STEPS // 2]
    assert [counts_of(each)["misses"] for each in (first, second)] == [{}, {}]


def test_two_denoisers_of_sglang_that_run_in_each_step(stage: Callable[..., Any]) -> None:
    both = Denoiser(), Denoiser(seed=1)
    stage(PLAN, *both, guidance=False, paired=True)._run_denoising_loop(noise())
    for each in both:
        counted = counts_of(each)
        assert (counted["calls"], counted["misses"], counted["slot_bytes"]) == (STEPS, {}, 0)
        assert counted["regions"]["reuse"] > 0


def test_without_the_variable_sglang_is_left_alone(sglang: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(for_sglang.VARIABLE, raising=False)
    for_sglang.register()
    assert not sglang.hooks


def test_decoders_of_sglang_are_compiled_as_they_were(stage: Callable[..., Any]) -> None:
    stage(PLAN, Denoiser(), guidance=False)
    resolve = sys.modules[f"{RUNTIME}.utils.torch_compile"].resolve_torch_compile_kwargs
    kwargs, _ = resolve("SGLANG_VAE_TORCH_COMPILE_MODE", "SGLANG_TORCH_COMPILE_MODE", default="default")
    assert kwargs["backend"] == "eager"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("speedup=2", "is 'speedup=2', which is no JSON"),
        ("[2.0]", r"is '\[2.0\]'; give an object of options"),
        ('{"spedup": 2}', "spedup"),
    ],
)
def test_a_variable_that_cannot_be_used(
    sglang: Registry, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv(for_sglang.VARIABLE, value)
    with pytest.raises(OptionError, match=message):
        for_sglang.register()
    assert not sglang.hooks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regional_compile": True}, "--regional-compile gives the backend one block at a time"),
        ({"enable_torch_compile": False}, "--enable-torch-compile is missing"),
        ({"enable_breakable_cuda_graph": True}, "run without torch.compile"),
        ({"cache_dit": True}, "switch it off, or unset the variable"),
    ],
)
def test_what_keeps_sglang_from_following_a_plan_is_said_at_once(
    stage: Callable[..., Any], settings: dict[str, bool], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        stage(PLAN, Denoiser(), guidance=False, **settings)
