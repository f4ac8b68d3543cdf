"""Exports a package for each number of steps, by plans of what the shared store holds."""

import sys
import tempfile
from pathlib import Path

import soda_compile
from examples.serving.orders import SIZES, STEPS
from examples.serving.replicas import SPEEDUP, accelerate_from_store, package, pipeline
from soda_compile.digits.example import example


def export(folder: Path) -> None:
    """Write the packages, each for all sizes; what is measured already is not measured again."""
    pipe = pipeline(folder)
    accelerate_from_store(pipe, folder)
    with tempfile.TemporaryDirectory() as saved:
        soda_compile.save_measurement(pipe, saved)
        (table,) = Path(saved).glob("*.safetensors")
        sensitivity = soda_compile.Sensitivity.load(table)
        (tried,) = (soda_compile.Plan.load(path) for path in Path(saved).glob("*.plan.json"))
    soda_compile.restore(pipe)
    inputs = [example(size)[1] for size in SIZES]
    for steps in STEPS:
        # Of the measured number of steps there is a plan that was tried; others are derived, as for the pipeline.
        plan = tried if steps == tried.steps else soda_compile.plan(sensitivity, steps=steps, speedup=SPEEDUP)
        soda_compile.export(pipe.transformer, inputs, plan=plan, path=package(folder, steps))


if __name__ == "__main__":
    export(Path(sys.argv[1]))
