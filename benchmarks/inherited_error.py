"""How much of a stale value's error remains when a region computes between anchors, on the digits model.

    python benchmarks/inherited_error.py

At a step between anchors the regions before it are stale, so a region that computes there computes from wrong
inputs. Take a real trajectory and a plan's anchors. At each step in between, let every module hand on its stale value
(reuse, or the forecast from its true values at the anchors), but note what it would have computed. The ratio of that
value's error to the error of the stale one is the planner's ``inherited_error``.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

import soda_compile
from soda_compile.digits.pipeline import DigitsPipeline, load
from soda_compile.plans.coefficients import lagrange
from soda_compile.storage.files import write_atomic

Values = dict[str, torch.Tensor]


def generate(pipe: DigitsPipeline, first: int, count: int) -> None:
    generators = [torch.Generator().manual_seed(first + index) for index in range(count)]
    pipe(class_labels=[index % 10 for index in range(count)], generator=generators, output_type="latent")


class Watch:
    """Sees every module's output, and may put another in its place."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...]) -> None:
        self.values: Values = {}
        self.instead: Values = {}
        for name in names:
            model.get_submodule(name).register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[..., torch.Tensor | None]:
        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            self.values[name] = output.detach().clone()
            return self.instead.get(name)

        return hook


def ratios(
    model: torch.nn.Module, watch: Watch, calls: list[Any], true: list[Values], anchors: tuple[int, ...], points: int
) -> dict[str, list[float]]:
    """By region: error of what is computed between anchors / error of the value extrapolated from `points` anchors."""
    found: dict[str, list[float]] = defaultdict(list)
    for step in range(len(calls)):
        if step in anchors:
            continue
        sources = [anchor for anchor in reversed(anchors) if anchor < step][:points]
        weights = lagrange(sources, step)
        watch.instead = {
            name: sum(weight * true[source][name] for weight, source in zip(weights, sources, strict=True))
            for name in true[step]
        }
        arguments, options = calls[step]
        with torch.no_grad():
            model(*arguments, **options)
        for name, exact in true[step].items():
            error = (watch.values[name] - exact).norm() / (watch.instead[name] - exact).norm()
            found[name].append(float(error))
    watch.instead = {}
    return found


def main(out: Path = Path("benchmarks/results/inherited_error.json"), samples: int = 20, generations: int = 2) -> None:
    pipe = load()
    sensitivity = soda_compile.calibrate(
        pipe, lambda seed: generate(pipe, 1_000_000 + 10 * seed, 10), generations=generations
    )
    model, names = pipe.transformer, sensitivity.info.regions
    watch = Watch(model, names)
    calls: list[Any] = []
    true: list[Values] = []
    before = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    after = model.register_forward_hook(lambda *_: true.append(dict(watch.values)))
    generate(pipe, 0, samples)
    before.remove()
    after.remove()
    rows = []
    for anchors in (12, 18):
        for operator, points in (("reuse", 1), ("forecast1", 2)):
            plan = soda_compile.plan(
                sensitivity, anchors=anchors, strategy=soda_compile.AnchorSchedule(operator=operator)
            )
            found = ratios(model, watch, calls, true, plan.anchors, points)
            everything = [value for values in found.values() for value in values]
            row = {
                "anchors": anchors,
                "operator": operator,
                "median": float(np.median(everything)),
                "quartiles": np.quantile(everything, (0.25, 0.75)).tolist(),
                "median_by_region": {name: float(np.median(values)) for name, values in found.items()},
            }
            rows.append(row)
            typer.echo(f"{anchors} anchors, {operator:10} {row['median']:.2f}, quartiles {row['quartiles']}")
    data = {"samples": samples, "seeds": f"0 to {samples - 1}", "torch": torch.__version__, "rows": rows}
    write_atomic(out, (json.dumps(data, indent=1) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
