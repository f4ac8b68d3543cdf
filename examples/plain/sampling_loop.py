"""A hand-written DDIM loop, calibrated and accelerated: ``python examples/plain/sampling_loop.py``."""

import itertools

import torch
from model import Denoiser

import soda_compile

STEPS = 20
torch.manual_seed(0)
model = Denoiser(channels=4, tokens=64).eval()  # put a trained model here
signal = torch.cos(torch.linspace(1.5, 0, STEPS + 1))  # share of the sample in the noisy sample, from noise to clean


@torch.no_grad()
def sample(denoiser, seed):
    """Two samples [2, 64, 4] of the model, called as it is or compiled."""
    x = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(seed))
    with soda_compile.trajectory(model):  # one generation: starts clean, every call is a step
        for now, later in itertools.pairwise(signal):
            noise = denoiser(x, (1 - now).expand(2))
            clean = (x - (1 - now**2).sqrt() * noise) / now
            x = later * clean + (1 - later**2).sqrt() * noise
    return x


sensitivity = soda_compile.calibrate(model, lambda seed: sample(model, seed), generations=2)
plan = soda_compile.plan(sensitivity, speedup=2)
print(plan)
fast = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True)
original = sample(model, 7)
print(f"relative difference from the original: {(sample(fast, 7) - original).norm() / original.norm():.1%}")
