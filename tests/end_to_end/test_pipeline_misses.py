"""What users do to a pipeline that its plan does not know of: nothing dies, and what runs without the plan is said."""

from typing import Any

import pytest
import torch
from pipelines import SMALL_SD3 as SD3
from pipelines import STEPS, close, sd3_plan
from thorough import gated

import soda_compile
from soda_compile import stats
from soda_compile.errors import OptionError, PlanError
from soda_compile.plans.plan import compute_all_plan

SKIPPED = {
    "skip_guidance_layers": [0],
    "skip_layer_guidance_start": 0.0,
    "skip_layer_guidance_stop": 0.5,
    "guidance_scale": 5.0,
}


pytestmark = pytest.mark.usefixtures("eager")


def with_adapter(pipe: Any, name: str = "default", seed: int = 0) -> None:
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False)
        pipe.transformer.add_adapter(config, adapter_name=name)


def test_any_number_of_adapter_scales_compiles_a_few_times() -> None:
    pipe, plain = SD3.build(), SD3.build()
    for each in (pipe, plain):
        with_adapter(each)
    soda_compile.accelerate(pipe, compute_all_plan(tuple(SD3.regions), STEPS))
    for number in range(10):  # more than Dynamo compiles of one function
        scale = {"joint_attention_kwargs": {"scale": 0.1 + number / 10}}
        close(SD3.draw(pipe, **scale), SD3.draw(plain, **scale))
    counted = stats(pipe)["transformer"]
    assert counted["misses"] == {}
    assert counted["compilations"] <= 3, "fixed, symbolic, and the scale that is kept on the layers"


@pytest.mark.thorough
def test_any_number_of_adapters_runs() -> None:
    """Each is other code: it is compiled once and found again, also beyond what Dynamo compiles of one function."""
    pipe, plain = SD3.build(), SD3.build()
    names = [f"adapter{number}" for number in range(4)]
    for seed, name in enumerate(names):
        for each in (pipe, plain):
            with_adapter(each, name, seed)
    soda_compile.accelerate(pipe, compute_all_plan(tuple(SD3.regions), STEPS))
    with torch._dynamo.config.patch(recompile_limit=2):
        for name in (*names, *names[:2]):
            for each in (pipe, plain):
                each.transformer.set_adapter(name)
            close(SD3.draw(pipe, num_inference_steps=STEPS), SD3.draw(plain, num_inference_steps=STEPS))
    counted = stats(pipe)["transformer"]
    assert counted["misses"] == {}
    assert counted["compilations"] == len(names)


def test_an_adapter_after_a_given_plan_follows_it() -> None:
    """A plan that names no weights follows the regions."""
    pipe = soda_compile.accelerate(SD3.build(), sd3_plan())
    fast = SD3.draw(pipe)
    with_adapter(pipe)
    assert (SD3.draw(pipe) - fast).abs().max() > 1e-3
    assert stats(pipe)["transformer"]["misses"] == {}


@pytest.mark.thorough
def test_an_adapter_after_a_measured_plan_follows_it_with_a_note(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is another model from then on: the measurement of the former serves, and the advice measures it."""
    pipe = SD3.build()
    inputs = {"calibrate_with": [SD3.inputs(torch.Generator().manual_seed(0), 1)], "cache": tmp_path}
    options = {"speedup": 1.3, "num_inference_steps": STEPS, "closest": 0, **inputs}
    soda_compile.accelerate(pipe, **options)
    SD3.draw(pipe)
    with_adapter(pipe)
    for _ in range(2):
        SD3.draw(pipe)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("soda_compile")]
    (told,) = [message for message in messages if "the nearest measurement serves" in message]
    assert "the weights of pipe.transformer are not those that were measured (a LoRA" in told
    assert f"soda_compile.accelerate(pipe, speedup=1.3, num_inference_steps={STEPS}" in told
    counted = stats(pipe)["transformer"]
    assert counted["misses"] == {}
    caplog.clear()
    soda_compile.restore(pipe)
    soda_compile.accelerate(pipe, **options)
    SD3.draw(pipe)
    assert "nearest" not in caplog.text
    assert len(list(tmp_path.glob("[!.]*"))) == 2
    pipe.transformer.delete_adapters("default")


def test_guidance_that_leaves_blocks_out() -> None:
    """The extra call has another structure: it runs without the plan, the others as ever."""
    pipe, plain = SD3.build(), SD3.build()
    soda_compile.accelerate(pipe, compute_all_plan(tuple(SD3.regions), STEPS))
    close(SD3.draw(pipe, **SKIPPED), SD3.draw(plain, **SKIPPED))
    counted = stats(pipe)["transformer"]
    assert set(counted["misses"]) == {"structure"}
    assert counted["calls"] == STEPS
    assert "not in this graph" in counted["reasons"]["structure"]


@pytest.mark.thorough
def test_a_structure_that_the_plan_does_not_know_can_be_refused() -> None:
    pipe = soda_compile.accelerate(SD3.build(), sd3_plan(), on_miss="error")
    with pytest.raises(Exception, match="the plan is for another model"):
        SD3.draw(pipe, **SKIPPED)


@pytest.mark.parametrize("dtype", gated(torch.bfloat16, others=[torch.float16]))
def test_weights_that_change_their_dtype(dtype: torch.dtype) -> None:
    pipe, plain = SD3.build(), SD3.build()
    soda_compile.accelerate(pipe, compute_all_plan(tuple(SD3.regions), STEPS))
    SD3.draw(pipe)
    inputs = {
        name: value.to(dtype)
        for name, value in SD3.inputs(torch.Generator().manual_seed(7), 1).items()
        if isinstance(value, torch.Tensor)
    }
    results = []
    for each in (pipe, plain):
        each.transformer.to(dtype)
        results.append(SD3.draw(each, **inputs).float())
    assert (results[0] - results[1]).norm() < 0.05 * results[1].norm()


def test_a_plan_for_another_model_is_an_error() -> None:
    plan = compute_all_plan(("transformer_blocks.7.attn", "transformer_blocks.7.ff"), STEPS)
    pipe = soda_compile.accelerate(SD3.build(), plan)
    with pytest.raises(Exception, match="the plan is for another model") as caught:
        SD3.draw(pipe)
    assert isinstance(caught.value, PlanError) or "PlanError" in str(caught.value)


def test_what_is_compiled_ahead_is_found_by_requests() -> None:
    pipe = soda_compile.accelerate(SD3.build(), sd3_plan())
    calls = [
        {"num_inference_steps": steps, **SD3.inputs(torch.Generator().manual_seed(7), batch)}
        for steps, batch in ((STEPS, 1), (STEPS, 2), (4, 1))
    ]
    found = soda_compile.compile_ahead(pipe, calls)
    assert [each.compilations > 0 for each in found] == [True, True, False]
    assert [dict(each.misses) for each in found] == [{}, {}, {"outside": 4}]
    before = stats(pipe)["transformer"]["compilations"]
    for seed, batch in ((3, 1), (4, 2)):
        SD3.draw(pipe, seed=seed, batch=batch)
    assert stats(pipe)["transformer"]["compilations"] == before
    with pytest.raises(OptionError, match="calls is"):
        soda_compile.compile_ahead(pipe, {"num_inference_steps": 3})
    with pytest.raises(OptionError, match="pass generate="):
        soda_compile.compile_ahead(pipe.transformer, calls)


@pytest.mark.thorough
def test_calls_of_another_structure_are_not_measured(tmp_path: Any) -> None:
    """The plan is that of the other calls; accelerated, the pipeline draws with it and without as it should."""
    inputs = [SD3.inputs(torch.Generator().manual_seed(0), 1)]
    pipes = [SD3.build(), SD3.build()]
    for pipe, more in zip(pipes, (SKIPPED, {"guidance_scale": 5.0}), strict=True):
        options = {"calibrate_with": inputs, "cache": tmp_path / str(len(more)), "pipeline_options": more}
        options["closest"] = 0
        soda_compile.accelerate(pipe, anchors=3, num_inference_steps=STEPS, **options)
    plain = [SD3.draw(pipe, guidance_scale=5.0) for pipe in pipes]
    assert (SD3.draw(pipes[0], **SKIPPED) - plain[0]).abs().max() > 1e-3
    counted = stats(pipes[0])["transformer"]
    assert set(counted["misses"]) == {"structure"}
    assert counted["calls"] == 2 * STEPS
