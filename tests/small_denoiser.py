"""A small denoiser, plans for it, and generations of it, compiled and by hooks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from eager_reference import EagerReference
from families import Region
from torch import Tensor, nn

import soda_compile
from soda_compile.plans.actions import ACTIONS
from soda_compile.plans.plan import Plan

TOKENS, WIDTH, LAYERS = 4, 8, 2
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
TIMESTEPS = (900.0, 700.0, 400.0, 200.0, 50.0)
STEPS = len(TIMESTEPS)
SYMBOLS = {action.symbol: action for action in ACTIONS}
ROWS = ("CCrC2", "CCC12", "CrCr1", "CC1Cr")

Call = tuple[Tensor, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(TOKENS, 6), nn.GELU(), nn.Linear(6, TOKENS))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = x + gate * self.mix(x.transpose(1, 2)).transpose(1, 2)
        return x + gate * self.mlp(x)


class Denoiser(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.last = nn.Linear(WIDTH, WIDTH)
        self.eval()

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.gated(x, 1 + torch.cos(timestep / 1000).to(x.dtype)[:, None, None])

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, gate)
        return self.last(x)


REGIONS = {
    f"blocks.{layer}.{name}": Region((f"blocks.{layer}.{name}.2",))
    for layer in range(LAYERS)
    for name in ("mix", "mlp")
}


def calls(seed: int = 0, batch: int = 2, dtype: torch.dtype = torch.float32) -> list[Call]:
    """Inputs of one generation: noise that drifts."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(batch, TOKENS, WIDTH, generator=generator)
    walk = torch.randn(STEPS, batch, TOKENS, WIDTH, generator=generator).mul(0.4).cumsum(0)
    return [((start + walk[i]).to(dtype), torch.full((batch,), t)) for i, t in enumerate(TIMESTEPS)]


def make_plan(rows: Sequence[str] = ROWS, **changes: Any) -> Plan:
    actions = tuple(tuple(SYMBOLS[symbol] for symbol in row) for row in rows)
    return replace(Plan("", tuple(REGIONS), actions), **changes)


PLAN = make_plan()
TIMED = make_plan(timesteps=TIMESTEPS, timestep_input="timestep")
TWO_CALLS = make_plan(calls_per_step=2)


def compiled(model: nn.Module, **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=False)


def generate(denoiser: Callable[..., Any], inputs: Sequence[Call]) -> Tensor:
    with torch.no_grad():
        return torch.stack([denoiser(*call) for call in inputs])


def trajectory(denoiser: Callable[..., Any], model: nn.Module, inputs: Sequence[Call]) -> Tensor:
    """A generation inside a trajectory of its own."""
    with soda_compile.trajectory(model):
        return generate(denoiser, inputs)


def check_shared_batch(model: nn.Module, plan: Plan, alone: Callable[[Sequence[Call]], Tensor]) -> None:
    """Check that two generations of one sample give in a batch, at each step, what they give alone."""
    generations = [calls(seed, 1) for seed in range(2)]
    batched = soda_compile.BatchedGenerations(model, plan, sizes=(1, 2))
    states = [batched.new_generation() for _ in generations]
    wanted = [alone(each) for each in generations]
    for step, ((x, timestep), (other, _)) in enumerate(zip(*generations, strict=True)):
        output = batched(states, x=torch.cat([x, other]), timestep=timestep.expand(2))
        torch.testing.assert_close(output, torch.cat([each[step] for each in wanted]), **ROUNDING)


def reference(model: nn.Module, plan: Plan, inputs: Sequence[Call]) -> Tensor:
    named = [{"x": x, "timestep": t} for x, t in inputs]
    return torch.stack([output for (output,) in EagerReference(model, REGIONS, plan).run(named)])


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)
