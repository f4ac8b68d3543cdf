"""Drift watch and the guard: what is compared at anchors, and steps that compute everything where it is far off."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_denoiser import SYMBOLS, TOKENS, WIDTH
from threads import at_once
from torch import Tensor, nn

import soda_compile
from soda_compile.errors import OptionError
from soda_compile.plans.plan import Plan, compute_all_plan
from soda_compile.plans.watched_region import WatchedRegion

STEPS, GUARD = 10, 2.0
ROWS = ("CC11C11C11", "CCC1CC1Cr1", "CrCrC1CC1r", "CCr1C11C11")  # anchors are 0, 4 and 7
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Linear(nn.Module):
    """Regions that are linear in the input: forecasts are exact where that goes along a line."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.ModuleDict({"mix": nn.Linear(TOKENS, TOKENS), "mlp": nn.Linear(WIDTH, WIDTH)})
                                    for _ in range(2))  # fmt: skip
        self.last = nn.Linear(WIDTH, WIDTH)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["mix"](x.transpose(1, 2)).transpose(1, 2)
            x = x + block["mlp"](x)
        return self.last(x)


NAMES = tuple(f"blocks.{block}.{part}" for block in range(2) for part in ("mix", "mlp"))


pytestmark = pytest.mark.usefixtures("eager")


def line(seed: int) -> list[Tensor]:
    start, direction = torch.randn(2, 2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return [start + direction * step / STEPS for step in range(STEPS)]


def walk(seed: int, calm_from: int = STEPS) -> list[Tensor]:
    """Steps that no line tells; those from ``calm_from`` on go along one."""
    jumps = torch.randn(STEPS, 2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
    jumps[calm_from:] = 0.01
    return list(jumps.cumsum(0))


def run(denoiser: Callable[..., Tensor], values: list[Tensor], model: nn.Module | None = None) -> Tensor:
    times = [torch.full((2,), 1.0 - step / STEPS) for step in range(STEPS)]
    if model is None:
        return torch.stack([denoiser(*each) for each in zip(values, times, strict=True)])
    with soda_compile.trajectory(model):
        return run(denoiser, values)


def compiled(model: nn.Module, plan: Plan, **options: Any) -> Callable[..., Tensor]:
    return torch.compile(model, backend="soda", options={"plan": plan, **options}, fullgraph=True, dynamic=False)


def plan_of(errors: dict[int, float] | None = None) -> Plan:
    plan = Plan("", NAMES, tuple(tuple(SYMBOLS[symbol] for symbol in row) for row in ROWS))
    return replace(plan, watched=None if errors is None else WatchedRegion(NAMES[0], errors))


def newest(model: nn.Module) -> dict[str, Any]:
    """What statistics say of the generation that began last."""
    generations = soda_compile.stats(model)["model"]["generations"]
    return generations[max(generations)]


def calibrated(model: nn.Module) -> Plan:
    sensitivity = soda_compile.calibrate(model, lambda seed: run(model, line(seed)), generations=2, max_interval=4)
    return soda_compile.plan(sensitivity, anchors=5)


def test_prompts_unlike_the_calibrations_are_computed(caplog: pytest.LogCaptureFixture) -> None:
    model = Linear()
    plan = calibrated(model)
    assert plan.watched is not None
    plain, guarded = compiled(model, plan), compiled(model, plan, guard=GUARD)
    for seed in (0, 5):
        found = run(guarded, line(seed), model)
        assert torch.equal(found, run(plain, line(seed), model)), "the calibration's own, and others like them"
        counts = newest(model)
        assert (counts["calls"], counts["guarded"]) == (STEPS, 0)
        assert counts["drift"]["readings"] > 0
        assert counts["drift"]["worst_ratio"] < GUARD
    wanted = run(model, walk(0))
    off = (run(plain, walk(0), model) - wanted).norm()
    assert newest(model)["drift"]["worst_ratio"] > 10 * GUARD
    with caplog.at_level(logging.WARNING, "soda_compile"):
        for _ in range(2):
            less = (run(guarded, walk(0), model) - wanted).norm()
    assert less < 0.8 * off
    counts = newest(model)
    assert counts["guarded"] > 0
    assert counts["calls"] + counts["guarded"] == STEPS
    (told,) = [record.getMessage() for record in caplog.records if "guard=2" in record.getMessage()]
    assert "times as far off as in the calibration" in told
    all_counts = soda_compile.stats(model)
    assert all_counts["model"]["guarded"] == 2 * counts["guarded"]
    text = str(all_counts)
    for word in ("guarded", "drift", "x, at most", "guard: at step"):
        assert word in text


def test_a_guarded_step_is_the_original_and_all_others_are_the_plans() -> None:
    """Regions that compute between anchors keep what later steps read, also where the guard computes the rest."""
    model, plan = Linear(), plan_of({4: 1e-3, 7: 1e3})
    plain, guarded = compiled(model, plan), compiled(model, plan, guard=GUARD)
    values = walk(0)
    original, planned, found = run(model, values), run(plain, values, model), run(guarded, values, model)
    for step in range(STEPS):
        torch.testing.assert_close(found[step], (original if step in (5, 6) else planned)[step], **CLOSE)
    for step in (5, 6, 8, 9):
        assert not torch.allclose(original[step], planned[step], atol=1e-2)
    assert (newest(model)["guarded"], newest(model)["calls"]) == (2, STEPS - 2)


def test_readings_are_the_errors_of_forecasts_of_the_watched_region() -> None:
    model, plan = Linear(), plan_of({4: 0.5})
    values = walk(1)
    run(compiled(model, plan), values, model)
    kept = [model.blocks[0]["mix"](value.transpose(1, 2)) for value in values]
    errors = [(forecast - kept[step]).norm() / kept[step].norm()
              for step, forecast in ((4, 4 * kept[1] - 3 * kept[0]), (7, 2 * kept[4] - kept[1] * 1))]  # fmt: skip
    assert plan.rows[0][:8] == "CC11C11C"
    drift = newest(model)["drift"]
    assert drift["readings"] == 2
    assert drift["last_ratio"] == pytest.approx(float(errors[0]) / 0.5, rel=1e-4), "of step 7 nothing is expected"
    assert drift["error"] == pytest.approx(float(sum(errors)) / 2, rel=1e-4)


def test_generations_have_errors_of_their_own() -> None:
    model, plan = Linear(), plan_of({4: 1e-2, 7: 1e-2})
    guarded = compiled(model, plan, guard=GUARD)
    kinds = {"line": line(3), "walk": walk(3), "calm": walk(4, calm_from=2)}
    alone = {name: run(guarded, values, model) for name, values in kinds.items()}
    counts: dict[str, Any] = {}
    found: dict[str, Tensor] = {}

    def work(name: str) -> None:
        with torch.no_grad(), soda_compile.trajectory(model) as generation:
            found[name] = run(guarded, kinds[name])
        counts[name] = generation.tally

    at_once(work, kinds)
    for name in kinds:
        assert torch.equal(found[name], alone[name])
    soda_compile.stats(model)
    assert {name: tally.guarded for name, tally in counts.items()} == {"line": 0, "walk": 4, "calm": 2}
    assert counts["line"].drift.worst < 1 < 10 < counts["walk"].drift.worst


def test_a_branch_of_guidance_trips_it_for_all() -> None:
    model, plan = Linear(), replace(plan_of({4: 1e-2, 7: 1e-2}), calls_per_step=2)
    guarded = compiled(model, plan, guard=GUARD)
    calm, wild = line(0), walk(0)
    with soda_compile.trajectory(model):
        for step in range(STEPS):
            time = torch.full((2,), 1.0 - step / STEPS)
            guarded(calm[step], time)
            guarded(wild[step], time)
    assert (newest(model)["guarded"], newest(model)["drift"]["readings"]) == (8, 4)


@pytest.mark.parametrize("conditioning", ["step", "trajectory"])
def test_nothing_is_watched_where_everything_is_computed(conditioning: str) -> None:
    model = Linear()
    plan = compute_all_plan(NAMES, STEPS)
    found = run(compiled(model, plan, guard=GUARD, conditioning=conditioning), walk(0), model)
    torch.testing.assert_close(found, run(model, walk(0)), **CLOSE)
    counts = soda_compile.stats(model)["model"]
    assert (counts["guarded"], counts["drift"]["readings"], counts["drift"]["error"]) == (0, 0, None)


def test_plans_that_expect_nothing_show_errors_alone() -> None:
    model = Linear()
    run(compiled(model, plan_of()), walk(0), model)
    drift = newest(model)["drift"]
    assert (drift["readings"], drift["ratio"], drift["worst_ratio"]) == (2, None, None)
    assert f"{drift['error']:.1%}" in str(soda_compile.stats(model))
    with pytest.raises(OptionError, match=r"guard=2 compares forecasts .* Make it with soda_compile.plan"):
        soda_compile.check_options({"plan": plan_of(), "guard": GUARD})


@pytest.mark.parametrize("guard", [1, 0.5, True, "2", float("inf"), float("nan")])
def test_a_guard_is_a_number_above_one(guard: Any) -> None:
    with pytest.raises(OptionError, match="it must be a number above 1"):
        soda_compile.check_options({"plan": plan_of({4: 0.1}), "guard": guard})


def test_a_plan_that_rounds_what_it_keeps_cannot_be_guarded() -> None:
    rounded = replace(plan_of(), slot_dtype="int8")
    with pytest.raises(OptionError, match=r"guard=2 .* rounds .* \(slot_dtype='int8'\).* leave guard out"):
        soda_compile.check_options({"plan": rounded, "guard": GUARD})
    soda_compile.check_options({"plan": rounded})


def test_generations_in_one_call_cannot_be_guarded() -> None:
    with pytest.raises(OptionError, match="generations that run on their own"):
        soda_compile.BatchedGenerations(Linear(), plan_of({4: 0.1}), guard=GUARD)


def test_a_backend_that_measures_itself_guards_its_plan(tmp_path) -> None:
    model = Linear()
    options = {"speedup": 1.3, "generations": 2, "max_interval": 4, "background": False, "cache": str(tmp_path)}
    denoiser = torch.compile(model, backend="soda", options={**options, "guard": GUARD}, dynamic=False)
    for seed in range(4):
        run(denoiser, line(seed), model)
    assert (newest(model)["calls"], newest(model)["guarded"]) == (STEPS, 0)
    run(denoiser, walk(0), model)
    assert newest(model)["guarded"] > 0


def test_pipelines_are_guarded() -> None:
    pytest.importorskip("diffusers")
    from pipelines import SMALL_SD3 as SD3
    from pipelines import STEPS

    names = tuple(SD3.regions)
    row = tuple(SYMBOLS[symbol] for symbol in "CrCrC")
    plan = Plan("", names, (row,) * len(names))
    pipe = SD3.build()
    with pytest.raises(OptionError, match=r"guard=1\.5 compares forecasts"):
        soda_compile.accelerate(pipe, plan, guard=1.5)
    soda_compile.accelerate(pipe, replace(plan, watched=WatchedRegion(names[-1], {2: 1e-9})), guard=1.5)
    SD3.draw(pipe)
    counts = soda_compile.stats(pipe)["transformer"]
    assert (counts["calls"], counts["guarded"]) == (STEPS - 1, 1)
    assert "guard=1.5" in counts["reasons"]["guard"]
