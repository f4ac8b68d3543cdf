"""The table of the demonstration, and what must be known to read it."""

import math
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from soda_compile.demo.measure import GUIDANCE, STEPS, Fidelity, Method

COLUMNS = (
    "method",
    "latency,\ns",
    "latency\nratio",
    "FLOP\nratio",
    "rel. L2\nmean",
    "rel. L2\nmedian",
    "PSNR,\ndB",
    "class\naccuracy",
    "compile,\ns",
)


def table(methods: Sequence[Method], ratios: Sequence[float], fidelities: Sequence[Fidelity]) -> Table:
    """Return a row for each method; the first method is the original."""
    count = len(methods[0].latents)
    title = f"digits, DDIM-{STEPS}, guidance {GUIDANCE}, {count} samples in one batch"
    result = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for index, column in enumerate(COLUMNS):
        result.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for index, (method, ratio, fidelity) in enumerate(zip(methods, ratios, fidelities, strict=True)):
        result.add_row(
            method.name,
            f"{method.latency_s:.2f}",
            f"{ratio:.2f}",
            f"{method.flop_ratio:.3f}",
            *(_closeness(fidelity) if index else ("-", "-", "-")),
            f"{fidelity.accuracy:.1%}",
            f"{method.compile_s:.1f}" if index else "-",
        )
    return result


def row(method: Method, ratio: float, fidelity: Fidelity) -> dict[str, Any]:
    """Return the row of a method as plain values; seconds, and shares that are not per cent."""
    return {
        "method": method.name,
        "latency_s": method.latency_s,
        "rounds_s": list(method.rounds_s),
        "latency_ratio": ratio,
        "flop_ratio": method.flop_ratio,
        "relative_l2_mean": fidelity.mean,
        "relative_l2_median": fidelity.median,
        "psnr_db": fidelity.psnr_db,
        "class_accuracy": fidelity.accuracy,
        "first_generation_more_s": method.compile_s,
    }


def _closeness(fidelity: Fidelity) -> tuple[str, str, str]:
    psnr = "inf" if math.isinf(fidelity.psnr_db) else f"{fidelity.psnr_db:.1f}"
    return _percent(fidelity.mean), _percent(fidelity.median), psnr


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 5e-5 or not share else f"{share * 100:.0e}%"


def reading(
    methods: Sequence[Method],
    fidelities: Sequence[Fidelity],
    *,
    seed: int,
    calibration: str,
    threads: int,
) -> str:
    """Return the text on how the table was made.

    Args:
        methods: The original, plain torch.compile, and the rest.
        fidelities: Theirs, in the same order.
        seed: Seed of the samples.
        calibration: What the plans were made from.
        threads: CPU threads.
    """
    rounds = len(methods[0].rounds_s)
    spread = max(max(method.rounds_s) / min(method.rounds_s) for method in methods) - 1
    count = len(methods[0].latents)
    return "\n".join(
        [
            f"Latency: wall time inside the {STEPS} denoiser calls of a generation, median over {rounds} interleaved "
            f"round(s) after a warm-up, {threads} CPU thread(s). A method's slowest round took up to {spread:.0%} "
            "longer than its fastest.",
            f"Ratios: latency to that of {methods[1].name} in the same round, median over rounds; FLOPs to computing "
            "everything.",
            f"Fidelity (relative L2, PSNR): to {methods[0].name}, same {count} initial noises (seed {seed}). The "
            f"numeric floor is the row {methods[1].name}: {_percent(fidelities[1].mean)}.",
            f"Accuracy: one sample is {1 / count:.1%}. Plans: {calibration}.",
            "Compile: first generation less a later one; shorter where Inductor has the kernels on disk.",
        ]
    )
