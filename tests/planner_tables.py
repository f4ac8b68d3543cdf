"""Random sensitivity data for tests, and the cost of a schedule written as plainly as possible."""

import math
from itertools import combinations

import numpy as np

from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, PRUNE_RATES, REUSE, prune
from soda_compile.plans.operators import OPERATORS
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.sensitivity import METRICS, Sensitivity, SensitivityInfo


def make_sensitivity(seed=0, steps=6, regions=2, width=5, holes=0.0, first_seed=0, samples=4, scores=(), **info):
    """Random errors, NaN where the history would lie before step 0 and at a share `holes` of the other entries.

    Pruning by one of `scores` has a random share of the error of reuse, less at lower rates.
    """
    rng = np.random.default_rng(seed)
    mean, variance = {}, {}
    for metric in METRICS:
        for operator in OPERATORS:
            order, shape = operator.order, (steps, regions, *operator.shape(width))
            draw = rng if operator.default else np.random.default_rng([seed, order])  # further ones change no others
            table = draw.random(shape).astype(np.float32)
            table[draw.random(shape) < holes] = np.nan
            step, age = np.arange(steps)[:, None, None], np.arange(1, width + 1)[:, None]
            spacing = np.arange(1, width + 1)
            undefined = step - age - order * spacing < 0 if order else (step - age < 0)[..., 0]
            table[np.broadcast_to(undefined[:, None], shape)] = np.nan
            mean[f"{metric}.{operator.name}"] = table
            variance[f"{metric}.{operator.name}"] = (table * draw.random(shape)).astype(np.float32)
    known = {
        "fingerprint": "abc",
        "regions": tuple(f"blocks.{index}.attn" for index in range(regions)),
        "steps": steps,
        "max_interval": width,
        "generations": 2,
        "samples": samples,
        "seeds": (first_seed, first_seed + 1),
        "timesteps": tuple(float(steps - step) for step in range(steps)),
        "timestep_input": "timestep",
        "scheduler": "DDIMScheduler",
        "scheduler_config": {"beta": [0.1, 0.2], "lambda_min_clipped": -math.inf},
        "scheduler_digest": "d1",
        "guidance": 1.5,
    }
    flops = rng.random(regions) + 1
    weights = rng.random(steps) + 0.1
    removed = None
    for score in scores:
        removed = flops[:, None] * np.array(PRUNE_RATES) * 0.9
        share = np.sort(rng.random((steps, regions, width, len(PRUNE_RATES))), axis=-1)
        for metric in METRICS:
            table = (share * mean[f"{metric}.reuse"][..., None]).astype(np.float32)
            mean[f"{metric}.prune.{score}"] = variance[f"{metric}.prune.{score}"] = table
    return Sensitivity(SensitivityInfo(**known | info), mean, variance, weights, flops, flops.sum() * 1.1, removed)


def every_schedule(steps, count):
    return [(0, *rest) for rest in combinations(range(1, steps), count - 1)]


def plain_cost(sensitivity, anchors, operator, objective="residual", weighted=True):
    """The error of a schedule, one region and one stale step at a time; infinite where it was not measured."""
    info, total = sensitivity.info, 0.0
    for step in range(info.steps):
        if step in anchors:
            continue
        past = [anchor for anchor in anchors if anchor < step][::-1]
        age = step - past[0]
        spacing = past[0] - past[1] if len(past) > 1 else 1
        enough = ["reuse"]
        if len(past) > 1:
            enough.append("forecast1")
        if len(past) > 2 and past[0] - 2 * spacing >= 0:
            enough.append("forecast2")
        # Four anchors for certain: the one before the last lies too far from the first for a single interval.
        if "forecast2" in enough and past[0] - 3 * spacing >= 0 and past[1] > info.max_interval + 1:
            enough.append("forecast3")
        ordered = ["reuse", "forecast1", "forecast2", "forecast3"]
        if operator == "auto":
            enough = [name for name in enough if name != "forecast3"]
        allowed = enough if operator == "auto" else [enough[min(len(enough) - 1, ordered.index(operator))]]
        for region in info.regions:
            errors = [sensitivity.error(objective, name, step, region, age, spacing) for name in allowed]
            error = min((value for value in errors if not math.isnan(value)), default=math.inf)
            total += error * (sensitivity.step_weights[step] if weighted else 1.0)
    return total


def make_profile(sensitivity, seed=0, measured_rates=PRUNE_RATES, score="drift", **fields):
    """Random costs: forecasts cost little, pruning less at higher rates; a constant part on top."""
    rng = np.random.default_rng(seed)
    count = len(sensitivity.info.regions)
    cost_us = np.full((count, len(PROFILED)), np.nan)
    compute = rng.random(count) * 50 + 50
    cost_us[:, PROFILED.index(COMPUTE)] = compute
    cost_us[:, PROFILED.index(REUSE)] = 0.0
    cost_us[:, PROFILED.index(FORECAST1)], cost_us[:, PROFILED.index(FORECAST2)] = compute * 0.01, compute * 0.02
    for rate in measured_rates:
        cost_us[:, PROFILED.index(prune(rate))] = compute * (1.1 - rate)
    base_us = 30.0
    known = {"full_us": base_us + compute.sum(), "base_us": base_us, "memory_bytes": np.arange(1.0, count + 1) * 100}
    return Profile(
        sensitivity.info.fingerprint,
        sensitivity.info.regions,
        "a device",
        "0123",
        **known | {"cost_us": cost_us, "score": score, "versions": {"torch": "2"}} | fields,
    )
