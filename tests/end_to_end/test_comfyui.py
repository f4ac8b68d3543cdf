"""The node for ComfyUI, between a loader and a sampler: generations, steps and conditions are told apart.

What stands in for ComfyUI has its interface; the samples are compared with those of forward hooks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui_stand_in import SIGMAS, Denoiser, ModelPatcher, base_model, sample
from comfyui_stand_in import comfyui as comfyui
from engine_stand_ins import counts_of, noise, under_hooks
from small_denoiser import make_plan
from torch import Tensor

from soda_compile import OptionError, Plan, PlanError
from soda_compile.engines.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, compile_model

STEPS = len(SIGMAS)
PLAN = make_plan(("CCrC2r", "CCC12r", "CrCr1C", "CC1Crr"))

pytestmark = pytest.mark.usefixtures("comfyui", "eager")


def text(length: int, seed: int = 0, samples: int = 1) -> Tensor:
    return torch.randn(samples, length, 3, generator=torch.Generator().manual_seed(100 + seed))


def by_hooks(plan: Plan, *arguments: Tensor, branches: Callable[[Tensor], int]) -> Tensor:
    """The same generation by forward hooks; ``branches`` says for a call's text whose values it takes."""
    hooked = under_hooks(Denoiser(), plan, lambda *_, context, **__: branches(context))
    return sample(ModelPatcher(base_model(hooked)), *arguments, evaluations=plan.steps // STEPS)


@pytest.mark.parametrize("lengths", [(5,), (5, 5), (5, 3)], ids=["no guidance", "one call", "two calls"])
def test_a_plan_does_what_hooks_do_for_each_call_of_a_step(lengths: tuple[int, ...], tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    (fast,) = NODE_CLASS_MAPPINGS["SodaCompile"]().compile(
        ModelPatcher(base_model()), speedup=2.0, plan=str(tmp_path / "plan.json")
    )
    conditions = [text(length, seed) for seed, length in enumerate(lengths)]
    for seed in range(2):
        original = sample(ModelPatcher(base_model()), noise(seed), *conditions)
        wanted = by_hooks(PLAN, noise(seed), *conditions, branches=lambda context: context.shape[1])
        found = sample(fast, noise(seed), *conditions)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, original, atol=1e-3)
    counted = counts_of(fast.model.diffusion_model)
    assert (counted["calls"], counted["misses"], counted["slot_bytes"]) == (2 * STEPS * len(set(lengths)), {}, 0)


def test_each_evaluation_of_a_sampler_is_a_step() -> None:
    plan = make_plan([row + "CCrCr1" for row in ("CCrC2r", "CCC12r", "CrCr1C", "CC1Crr")])
    fast = compile_model(ModelPatcher(base_model()), {"plan": plan})
    for seed in range(2):
        found = sample(fast, noise(seed), text(5), evaluations=2)
        wanted = by_hooks(plan, noise(seed), text(5), branches=lambda context: 0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert counts_of(fast.model.diffusion_model)["misses"] == {}


def test_first_generations_are_as_they_were_and_later_ones_accelerated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SODA_COMPILE_CACHE", str(tmp_path))
    plain = ModelPatcher(base_model())
    fast = compile_model(plain, {"speedup": 1.5, "generations": 3, "background": False})
    conditions = (text(5, 0), text(3, 1))
    errors = [
        float((sample(fast, noise(seed), *conditions) - original).norm() / original.norm())
        for seed in range(6)
        for original in [sample(plain, noise(seed), *conditions)]
    ]
    assert max(errors[:3]) < 1e-5
    assert all(1e-4 < error < 0.5 for error in errors[4:]), errors  # the fourth may still compile the plan


def test_the_model_that_goes_in_stays_as_it_is_and_a_second_node_replaces_the_first() -> None:
    plain = ModelPatcher(base_model())
    once = compile_model(plain, {"plan": PLAN})
    twice = compile_model(once, {"plan": make_plan(("CCCCCC",) * 4)})
    original = sample(plain, noise(), text(5))
    torch.testing.assert_close(sample(twice, noise(), text(5)), original, rtol=1e-5, atol=1e-6)
    assert not any(plain.wrappers.values())
    assert [len(each) for each in twice.wrappers["apply_model"].values()] == [1, 1]
    assert not torch.allclose(sample(once, noise(), text(5)), original, atol=1e-3)


def test_a_sampler_that_is_interrupted_leaves_nothing() -> None:
    fast = compile_model(ModelPatcher(base_model()), {"plan": PLAN})
    alone = sample(fast, noise(), text(5))

    def interrupt(executor: Any, x: Tensor, sigma: Tensor) -> Tensor:
        if float(sigma[0]) == pytest.approx(SIGMAS[2]):
            raise InterruptedError
        predicted: Tensor = executor(x, sigma)
        return predicted

    stopped = fast.clone()
    stopped.add_wrapper_with_key("predict_noise", "interrupt", interrupt)
    with pytest.raises(InterruptedError):
        sample(stopped, noise(1), text(5))
    assert counts_of(fast.model.diffusion_model)["slot_bytes"] == 0
    torch.testing.assert_close(sample(fast, noise(), text(5)), alone, rtol=0, atol=0)


def test_what_cannot_be_used_is_said_before_anything_is_compiled(tmp_path: Path) -> None:
    plain = ModelPatcher(base_model())
    with pytest.raises(OptionError, match="spedup"):
        compile_model(plain, {"spedup": 2.0})
    with pytest.raises(PlanError, match=r"nothing\.json"):
        NODE_CLASS_MAPPINGS["SodaCompile"]().compile(plain, speedup=2.0, plan=str(tmp_path / "nothing.json"))


def test_the_node_is_as_comfyui_reads_it() -> None:
    (node,) = NODE_CLASS_MAPPINGS.values()
    assert NODE_DISPLAY_NAME_MAPPINGS.keys() == NODE_CLASS_MAPPINGS.keys()
    assert callable(getattr(node, node.FUNCTION))
    inputs = node.INPUT_TYPES()
    defaults = {name: rest[0]["default"] for group in inputs.values() for name, (_, *rest) in group.items() if rest}
    assert defaults == {"speedup": 2.0, "generations": 8, "plan": ""}
