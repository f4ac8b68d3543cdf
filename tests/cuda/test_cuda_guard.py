"""Drift watch and the guard on a GPU: errors come to the host by themselves, and steps run where they should."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_denoiser import LAYERS, REGIONS, SYMBOLS, TOKENS, WIDTH, Denoiser, compiled, generate

import soda_compile
from soda_compile.plans.plan import Plan
from soda_compile.plans.watched_region import WatchedRegion

STEPS = 10
ROWS = ("CC11C11C11", "CCC1CC1Cr1", "CrCrC1CC1r", "CCr1C11C11")  # anchors are 0, 4 and 7
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
MODES = (None, "reduce-overhead")


def plan_of(errors: dict[int, float]) -> Plan:
    names = tuple(REGIONS)
    assert len(names) == 2 * LAYERS == len(ROWS)
    plan = Plan("", names, tuple(tuple(SYMBOLS[symbol] for symbol in row) for row in ROWS))
    return replace(plan, watched=WatchedRegion(names[0], errors))


def walk(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    jumps = torch.randn(STEPS, 2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)).cumsum(0)
    return [(x.to(device), torch.full((2,), 1000.0 - 90 * i, device=device)) for i, x in enumerate(jumps)]


def run(denoiser: Any, model: torch.nn.Module, device: str = "cuda") -> torch.Tensor:
    with soda_compile.trajectory(model):
        return generate(denoiser, walk(device))


def readings(model: torch.nn.Module) -> dict[str, Any]:
    generations = soda_compile.stats(model)["model"]["generations"]
    return generations[max(generations)]


@pytest.mark.parametrize("mode", MODES)
def test_guarded_steps_compute_and_all_others_follow_the_plan(mode: str | None) -> None:
    model, plan = Denoiser().cuda(), plan_of({4: 1e-6, 7: 1e6})
    options = {"mode": mode} if mode else {}
    plain, guarded = compiled(model, plan=plan, **options), compiled(model, plan=plan, guard=2.0, **options)
    original = generate(model, walk("cuda"))
    for _ in range(3):  # steps run as they are, are recorded, and are replayed
        planned, found = run(plain, model), run(guarded, model)
        for step in range(STEPS):
            wanted = original if step in (5, 6) else planned
            torch.testing.assert_close(found[step], wanted[step], **CLOSE)
        counts = readings(model)
        assert (counts["guarded"], counts["calls"], counts["drift"]["readings"]) == (2, STEPS - 2, 2)
    assert not torch.allclose(original[5], planned[5], **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_errors_are_read_without_waiting_for_the_device(mode: str | None) -> None:
    plan = plan_of({4: 0.5, 7: 0.5})
    model, twin = Denoiser().cuda(), Denoiser()
    denoiser = compiled(model, plan=plan, **({"mode": mode} if mode else {}))
    for _ in range(2):
        run(denoiser, model)
    given = walk("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad(), soda_compile.trajectory(model):
            for call in given:
                denoiser(*call)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run(compiled(twin, plan=plan), twin, "cpu")
    here, there = readings(model)["drift"], readings(twin)["drift"]
    assert here["readings"] == 2
    for key in ("error", "ratio", "last_ratio", "worst_ratio"):
        assert here[key] == pytest.approx(there[key], rel=1e-2)
