"""A flow-matching model trained in seconds, then accelerated: ``python examples/plain/flow_matching.py``.

It learns closed curves: 32 points on an ellipse of random size and turn. The flow from noise (time 0) to data (time 1)
is integrated in Euler steps; the velocity model is what gets a plan.
"""

import math

import torch
from model import Denoiser

import soda_compile

TOKENS, STEPS = 32, 20


def curves(count: int, generator: torch.Generator) -> torch.Tensor:
    """Ellipses [count, TOKENS, 2]."""
    angle = torch.linspace(0, 2 * math.pi, TOKENS + 1)[:-1]
    radii, turn = torch.rand(2, count, 1, generator=generator) + 0.5
    x, y = radii * angle.cos(), angle.sin() / radii
    return torch.stack([x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()], dim=-1)


def train(model: Denoiser, rounds: int, generator: torch.Generator) -> None:
    """Regresses the velocity from noise to data at a random time."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(rounds):
        data, time = curves(64, generator), torch.rand(64, generator=generator)
        noise = torch.randn(data.shape, generator=generator)
        along = time[:, None, None]
        loss = (model((1 - along) * noise + along * data, time) - (data - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"trained for {rounds} rounds, last loss {loss.item():.3f}")


@torch.no_grad()
def generate(model: Denoiser, velocity, seed: int) -> torch.Tensor:
    """Integrates the flow; ``velocity`` is the model or its compiled self."""
    x = torch.randn(4, TOKENS, 2, generator=torch.Generator().manual_seed(seed))
    with soda_compile.trajectory(model):
        for step in range(STEPS):
            x = x + velocity(x, torch.full((4,), step / STEPS)) / STEPS
    return x


def main(rounds: int = 300) -> None:
    """Trains, calibrates, plans and compares."""
    torch.manual_seed(0)
    model = Denoiser(channels=2, tokens=TOKENS)
    train(model, rounds, torch.Generator().manual_seed(0))
    model.eval()
    sensitivity = soda_compile.calibrate(model, lambda seed: generate(model, model, seed), generations=2)
    plan = soda_compile.plan(sensitivity, speedup=2)
    print(plan)
    fast = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True)
    original = generate(model, model, 7)
    print(f"difference: {(generate(model, fast, 7) - original).norm() / original.norm():.1%}")


if __name__ == "__main__":
    main()
