"""The compile tests of diffusers under plain Inductor, and under this backend without a plan and with two.

    python -m benchmarks.diffusers_compile_tests ~/diffusers --models flux,sd3 --modes inductor,accelerate

Takes a checkout of diffusers for its tests; the diffusers that is installed is what they test. Each model and mode runs
in a process of its own, with ``diffusers_compile_plugin``; what is run again replaces what the results hold of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.diffusers_compile_plugin import MODES, STEPS

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "diffusers_compile_tests.json"
MODELS = (
    "flux", "flux2", "sd3", "qwenimage", "z_image", "ltx", "ltx2", "wan", "hunyuan_video", "ernie_image", "cosmos3",
    "krea2", "motif_video", "helios",
)  # fmt: skip
TESTS = {
    "test_torch_compile_recompilation_and_graph_break": "whole model",
    "test_torch_compile_repeated_blocks": "repeated blocks",
    "test_compile_with_group_offloading": "group offloading",
    "test_compile_on_different_shapes": "different shapes",
    "test_torch_compile_with_and_without_mask": "with and without mask",
}
TITLES = {
    "inductor": "plain Inductor",
    "soda": 'backend="soda", no plan',
    "compute": "plan: compute everything",
    "accelerate": "plan: reuse every second step",
}
SKIP = "Skipped: "


def run_tests(checkout: Path, model: str, mode: str, lowering: str, timeout: float) -> list[dict[str, Any]]:
    """Outcomes of the tests of one model in one mode, in a process of its own."""
    module = f"tests/models/transformers/test_models_transformer_{model}.py"
    if not (checkout / module).exists():
        raise SystemExit(f"{checkout} has no {module}; give a checkout of diffusers, and models that it has")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "--disable-warnings", "-p", "no:logging"]
        command += ["-p", "diffusers_compile_plugin", "--soda-mode", mode]
        command += ["--soda-report", str(report), module]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]),
            "SODA_COMPILE_LOWERING": lowering,
        }
        if not torch.accelerator.is_available():
            environment["DIFFUSERS_TEST_DEVICE"] = "cpu:0"  # the tests leave "cpu" out
        try:
            done = subprocess.run(
                command, cwd=checkout, env=environment, timeout=timeout, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            return [_outcome(test, f"longer than {timeout:g} s for all tests of the model") for test in TESTS]
        if not report.exists():
            raise SystemExit(f"{' '.join(command)} gave no report:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        found: list[dict[str, Any]] = json.loads(report.read_text())
    return found


def _outcome(test: str, reason: str) -> dict[str, Any]:
    return {"test": test, "class": "", "outcome": "failed", "seconds": 0.0, "reason": reason}


def cell(row: dict[str, Any]) -> str:
    """What a table shows of one outcome."""
    reason = row["reason"].removeprefix(SKIP).replace("|", "\\|")
    if row["outcome"] != "passed":
        return f"{row['outcome']}: {reason}"
    counts = [f"{count} {kind}" for kind, count in row.get("regions", {}).items()]
    counts += [f"{count} calls without the plan ({kind})" for kind, count in row.get("misses", {}).items()]
    return "passed" + (f" ({', '.join(counts)})" if counts else "")


def table(report: dict[str, Any]) -> str:
    """The page beside the results."""
    rows = report["rows"]
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    found = {(row["model"], row["class"], row["test"], row["mode"]): row for row in rows}
    lines = [
        "# The compile tests of diffusers",
        "",
        f"`TorchCompileTesterMixin` of a checkout, diffusers {report['diffusers']}, torch {report['torch']}, on "
        f"{report['device']}. In brackets: what regions did, in the calls that followed the plan.",
        "",
        *report["notes"],
        "",
        f"| model | test | {' | '.join(TITLES[mode] for mode in modes)} |",
        "|---|---|" + "---|" * len(modes),
    ]
    for model, owner, test in dict.fromkeys(key[:3] for key in found):
        cells = [cell(found[key]) if (key := (model, owner, test, mode)) in found else "" for mode in modes]
        lines.append(f"| {model}: `{owner.removeprefix('Test')}` | {TESTS.get(test, test)} | {' | '.join(cells)} |")
    lines += ["", f"| outcome | {' | '.join(TITLES[mode] for mode in modes)} |", "|---|" + "---|" * len(modes)]
    counts = Counter((row["mode"], row["outcome"]) for row in rows)
    for outcome in ("passed", "failed", "skipped"):
        lines.append(f"| {outcome} | {' | '.join(str(counts[mode, outcome]) for mode in modes)} |")
    return "\n".join(lines) + "\n"


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What must be known to read the table."""
    eager = sorted({row["model"] for row in rows if row["mode"] != "inductor" and row["lowering"] == "eager"})
    compiled = sorted({row["model"] for row in rows if row["mode"] != "inductor" and row["lowering"] == "inductor"})
    return [
        "- A plan is made for what the test compiles, the model or a block of it, when that is first called: "
        f"{STEPS} steps, of which the tests run the first two or three. The tests compare no values; in the modes of "
        "this backend each output is compared with the same call in eager mode too.",
        "- `test_compile_works_with_aot` calls `torch.export` and AOTInductor, never a backend: it is not run.",
        "- Without an accelerator group offloading runs without streams, which the test asks for.",
        "- What stands empty was not run.",
        f"- Rewritten graphs are compiled by Inductor for {', '.join(compiled) or 'no model'}, and run operator by "
        f"operator for {', '.join(eager) or 'no model'}.",
    ]


def main() -> None:
    """Run the tests and write what came of them after each model and mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of diffusers")
    parser.add_argument("--models", default=",".join(MODELS), help="ends of the names of test files")
    parser.add_argument("--modes", default=",".join(MODES), help=", ".join(MODES))
    parser.add_argument("--lowering", default="inductor", choices=("inductor", "eager"), help="of rewritten graphs")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one model and mode")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.modes.split(",")) - set(MODES):
        parser.error(f"no mode {', '.join(sorted(unknown))}; there are {', '.join(MODES)}")
    for model in arguments.models.split(","):
        for mode in arguments.modes.split(","):
            found = run_tests(arguments.checkout, model, mode, arguments.lowering, arguments.timeout)
            rows = [{"model": model, "mode": mode, "lowering": arguments.lowering, **row} for row in found]
            for row in rows:
                print(model, mode, TESTS.get(row["test"], row["test"]), row["seconds"], cell(row), flush=True)
            save(arguments.out, rows)


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows in the place of those of the same models and modes, and write the table anew."""
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    replaced = {(row["model"], row["mode"]) for row in rows}
    everything = [row for row in kept if (row["model"], row["mode"]) not in replaced] + rows
    everything.sort(key=lambda row: (row["model"], row["class"], row["mode"]))
    report = {
        "diffusers": version("diffusers"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "notes": notes(everything),
        "rows": everything,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
