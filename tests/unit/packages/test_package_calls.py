"""How a loaded package is called: arguments, results, shapes, trajectories; its subgraphs run in eager mode here."""

import inspect
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import package_tools as toy
import pytest
import torch
from threads import at_once

import soda_compile
from soda_compile import PackagedDenoiser, PackageError

pytestmark = pytest.mark.usefixtures("eager_subgraphs")


@pytest.fixture(scope="module")
def package(folder: Path) -> Path:
    return toy.export(folder / "toy.soda.pt2")


@pytest.fixture
def denoiser(package: Path) -> PackagedDenoiser:
    return soda_compile.load(package)


def expected() -> torch.Tensor:
    model = toy.Denoiser()
    return toy.generate(toy.jit(model, lowering="eager"), toy.trajectory())


def test_a_trajectory_is_the_jits(denoiser: PackagedDenoiser) -> None:
    torch.compiler.reset()
    torch.testing.assert_close(toy.generate(denoiser, toy.trajectory()), expected(), rtol=1e-5, atol=1e-6)


def test_computing_everything_is_the_model(folder: Path) -> None:
    path = toy.export(folder / "all.soda.pt2", plan=toy.make_plan("CCCC"))
    model, loaded = toy.Denoiser(), soda_compile.load(path)
    torch.testing.assert_close(toy.generate(loaded, toy.trajectory()), toy.generate(model, toy.trajectory()))


def test_trajectories_repeat_and_start_clean(denoiser: PackagedDenoiser) -> None:
    calls = toy.trajectory()
    first = toy.generate(denoiser, calls)
    toy.generate(denoiser, calls[:2])  # interrupted
    assert torch.equal(toy.generate(denoiser, calls), first)
    toy.generate(denoiser, calls[:2])
    with soda_compile.trajectory(denoiser):
        assert torch.equal(toy.generate(denoiser, calls), first)
    with soda_compile.trajectory(denoiser, manual=True) as clock, torch.no_grad():
        for call, wanted in zip(calls, first, strict=True):
            for _ in range(2):  # two branches of guidance
                assert torch.equal(denoiser(**call).sample, wanted)
            clock.advance()


def test_a_step_out_of_order_computes_everything_or_is_refused(package: Path) -> None:
    calls = toy.trajectory()
    strict, denoiser = soda_compile.load(package, on_miss="error"), soda_compile.load(package)
    with torch.no_grad(), soda_compile.trajectory(strict):
        strict(**calls[0])
        with pytest.raises(soda_compile.TrajectoryError, match="timestep=400, but step 1 is due"):
            strict(**calls[2])
    with torch.no_grad(), soda_compile.trajectory(denoiser) as generation:
        denoiser(**calls[0])
        torch.testing.assert_close(denoiser(**calls[2]).sample, toy.Denoiser()(**calls[2]).sample)
    assert generation.tally.misses == {"timestep": 1}


def test_a_branch_that_joins_late_computes_everything(denoiser: PackagedDenoiser) -> None:
    """A package holds whole trajectories only."""
    calls, model = toy.trajectory(), toy.Denoiser()
    wanted = toy.generate(denoiser, calls)
    with torch.no_grad(), soda_compile.trajectory(denoiser, manual=True) as generation:
        for step, call in enumerate(calls):
            assert torch.equal(denoiser(**call).sample, wanted[step])
            if step >= 1:
                torch.testing.assert_close(denoiser(**call).sample, model(**call).sample)
            generation.advance()
    assert generation.tally.misses == {"late": len(calls) - 1}


def test_threads_share_a_package(denoiser: PackagedDenoiser) -> None:
    calls = toy.trajectory()
    wanted, results = toy.generate(denoiser, calls), []
    barrier = threading.Barrier(3)

    def work(_: int) -> None:
        barrier.wait(timeout=60)
        for _ in range(10):
            with soda_compile.trajectory(denoiser):
                results.append(toy.generate(denoiser, calls))

    at_once(work, range(3))
    assert len(results) == 30
    assert all(torch.equal(result, wanted) for result in results)


def test_two_packages_do_not_share_state(package: Path) -> None:
    one, other = soda_compile.load(package), soda_compile.load(package)
    calls = toy.trajectory()
    wanted = toy.generate(one, calls)
    with torch.no_grad():
        pairs = [(one(**call).sample, other(**call).sample) for call in calls]
    assert all(torch.equal(a, b) and torch.equal(a, w) for (a, b), w in zip(pairs, wanted, strict=True))


def test_results_have_the_form_asked_for(denoiser: PackagedDenoiser) -> None:
    with torch.no_grad():
        named, plain = denoiser(**toy.inputs()), denoiser(**toy.inputs(1), return_dict=False)
    assert named.sample is named[0] is named["sample"]
    assert named.extra is None
    assert "extra" not in named
    assert len(named.to_tuple()) == 1
    assert isinstance(plain, tuple)
    assert len(plain) == 1
    with pytest.raises(AttributeError, match="no field 'logits', only sample, extra"):
        _ = named.logits


def test_arguments_go_by_position_and_expanded_tensors_are_taken(denoiser: PackagedDenoiser) -> None:
    call = toy.inputs()
    wanted = toy.generate(denoiser, [call])[0]
    expanded = torch.tensor(toy.TIMESTEPS[0]).expand(2)
    transposed = call["hidden_states"].transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad():
        assert torch.equal(denoiser(transposed, expanded, call["added"], call["ignored"])[0], wanted)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_states": torch.ones(3, 4, 8)}, r"hidden_states is float32\[3, 4, 8\], but was float32\[2, 4, 8\]"),
        ({"timestep": torch.ones(2, dtype=torch.float64)}, r"timestep is float64\[2\], but was float32\[2\]"),
        ({"timestep": 900.0}, "timestep is 900.0, but was a tensor"),
        ({"added": None}, "added.bias is None, but was a tensor"),
        ({"added": {"bias": torch.ones(1, 4, 1), "size": 3}}, "added.size is 3, but was None"),
        ({"added": {"bias": torch.ones(1, 4, 1)}}, "added.size is not given, but was None"),
        ({"added": {"bias": torch.ones(1, 4, 1), "size": None, "ratio": 1}}, "added.ratio is 1, but was not given"),
    ],
)
def test_another_call_is_refused(denoiser: PackagedDenoiser, changes: dict[str, Any], reason: str) -> None:
    with torch.no_grad(), pytest.raises(PackageError, match=f"{reason} when it was exported"):
        denoiser(**toy.inputs(**changes))


def test_gradients_are_refused(denoiser: PackagedDenoiser) -> None:
    call = toy.inputs()
    with pytest.raises(soda_compile.OptionError, match="has none"):
        denoiser(**{**call, "hidden_states": call["hidden_states"].requires_grad_()})


def test_a_package_for_several_shapes(folder: Path) -> None:
    path = toy.export(folder / "shapes.soda.pt2", example=[toy.inputs(), toy.inputs(batch=3, added=None)])
    loaded = soda_compile.load(path)
    both = toy.trajectory(), toy.trajectory(batch=3, added=None)
    for calls in both:
        torch.compiler.reset()
        wanted = toy.generate(toy.jit(toy.Denoiser(), lowering="eager"), calls)
        torch.testing.assert_close(toy.generate(loaded, calls), wanted, rtol=1e-5, atol=1e-6)
    with (
        torch.no_grad(),
        pytest.raises(PackageError, match=r"\[4, 4, 8\], but was float32\[2, 4, 8\]; or .*\[3, 4, 8\]"),
    ):
        loaded(**toy.inputs(batch=4))


def test_it_is_what_pipelines_look_at(denoiser: PackagedDenoiser) -> None:
    model = toy.Denoiser()
    assert (denoiser.dtype, denoiser.device) == (torch.float32, torch.device("cpu"))
    assert denoiser.config.in_channels == denoiser.config["in_channels"] == toy.WIDTH
    assert denoiser.config.shapes == [1, 2]
    with denoiser.cache_context("cond"):
        pass
    assert isinstance(denoiser, torch.nn.Module)
    assert list(inspect.signature(denoiser.forward).parameters) == list(inspect.signature(model.forward).parameters)
    assert denoiser.to("cpu", torch.float32) is denoiser
    with pytest.raises(PackageError, match="cannot move to cpu float16"):
        denoiser.to(torch.float16)
    assert repr(denoiser) == f"PackagedDenoiser(Denoiser, {toy.PLAN!r})"


def test_weights_keep_their_names_and_can_be_changed(denoiser: PackagedDenoiser) -> None:
    model = toy.Denoiser()
    saved = denoiser.state_dict()
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    before = toy.generate(denoiser, toy.trajectory())
    denoiser.load_state_dict({**saved, "out.bias": saved["out.bias"] + 1})
    torch.testing.assert_close(toy.generate(denoiser, toy.trajectory()), before + 1)


def test_importing_starts_no_compiler() -> None:
    """A serving process would wait seconds for it."""
    code = "import sys, soda_compile; print([name for name in ('torch._dynamo', 'diffusers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_model_in_several_graphs_is_refused(folder: Path) -> None:
    class Broken(toy.Denoiser):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> Any:
            hidden_states = hidden_states.sin()
            torch._dynamo.graph_break()
            return super().forward(hidden_states, timestep, return_dict=False)

    call = {name: toy.inputs()[name] for name in ("hidden_states", "timestep")}
    with pytest.raises(soda_compile.CaptureError, match=r"captured (in .* graphs|as one graph)"):
        toy.export(folder / "broken.soda.pt2", Broken(), example=call)


def test_what_a_package_cannot_express_is_refused(folder: Path) -> None:
    class Odd(toy.Denoiser):
        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, what: Any = None) -> Any:
            result = super().forward(hidden_states, timestep).sample
            return result.shape if what == "shape" else {"answer": [result, None]}

    path = folder / "odd.soda.pt2"
    call = {name: toy.inputs()[name] for name in ("hidden_states", "timestep")}
    with pytest.raises(PackageError, match="returns a int; a package can give tensors"):
        toy.export(path, Odd(), example={**call, "what": "shape"})
    with pytest.raises(PackageError, match="do not fit the denoiser's forward: missing"):
        toy.export(path, Odd(), example={"hidden_states": call["hidden_states"]})
    with pytest.raises(PackageError, match="argument what is a dtype"):
        toy.export(path, Odd(), example={**call, "what": torch.float32})
    with pytest.raises(soda_compile.PlanError, match=r"not in this graph: blocks\.0\.attn"):
        toy.export(path, plan=soda_compile.compute_all_plan(("blocks.0.attn",), 4))
    with pytest.raises(PackageError, match="there is no folder"):
        toy.export(folder / "nowhere" / "x.soda.pt2")
    with pytest.raises(soda_compile.OptionError, match="'inside' or 'external'"):
        toy.export(path, weights="outside")
    assert not list(folder.glob("*odd*"))
    with torch.no_grad():
        result = soda_compile.load(toy.export(path, Odd(), example=call))(**call)
    assert result.answer[1] is None
    assert result["answer"][0].shape == (2, 4, 8)
