"""The results as Markdown."""

from collections.abc import Iterator
from typing import Any

from benchmarks.cuda_codegen.datasheets import COMPILED_FOR, PRICED
from benchmarks.suite.table import grid

Report = dict[str, Any]
MAIN = PRICED[0].name
ABOUT = """\
**Counts, not measurements.** Nothing here ran on a GPU: Inductor generated all code and Triton compiled it to cubins on
a machine without one. Bytes and operations are counted from Inductor's scheduler, registers and spills read from the
cubins. Times are rooflines of data sheets: for each kernel the longest of its memory traffic and its arithmetic by
unit, added up. Launch overhead, caches, occupancy and what libraries really reach are left out, so a real step takes
longer, and short steps by more.

An operator of a library (a product, attention, a convolution) counts as one launch. Each buffer counts once for each
kernel that touches it, as far as it is touched. Attention is taken for flash attention, for memory-efficient attention
under a mask; no product is padded, which on a device is decided by timing; kernels with several configurations are
compiled in all of them, and registers are those of the leanest, where all graphs of a step became cubins."""


def markdown(report: Report) -> str:
    """The whole report."""
    lines = ["# CUDA code, counted", "", ABOUT, "", *_compiled(report)]
    for model in report["models"].values():
        lines += ["", *_model(model)]
    if report["slots"]:
        lines += ["", *_slots(report["slots"])]
    if report["rewrites"]:
        lines += ["", *_rewrites(report["rewrites"])]
    if report["numerics"]:
        lines += ["", *_numerics(report["numerics"])]
    return "\n".join([*lines, "", *_sources(report)]) + "\n"


def _compiled(report: Report) -> list[str]:
    headings = (
        "denoiser",
        "target",
        "graphs generated",
        "to cubins",
        "failed",
        "generated kernels",
        "cubins",
        "MB",
        "most registers",
        "spilling",
    )
    rows = [
        [
            model["title"], f"sm_{capability}", f"{made['generated_graphs']} of {model['graphs']}",
            str(made["graphs"]), str(len(made["failures"])),
            str(made["generated"]), str(made["cubins"]), f"{made['cubin_bytes'] / 1e6:.1f}",
            str(made["most_registers"]), str(len(made["spilling"])),
        ]
        for model in report["models"].values()
        for capability, made in model["capabilities"].items()
    ]  # fmt: skip
    text = (
        "Cubins are distinct kernels in all configurations that Inductor would time against each other; it drops those "
        "that spill where others do not."
    )
    return ["## What was compiled", "", text, "", *grid(headings, rows)]


def _model(model: Report) -> list[str]:
    capability, made = next(iter(model["capabilities"].items()))
    lines = [
        f"## {model['title']}",
        "",
        f"Batch {model['batch']}, bfloat16, weights of {model['weight_bytes'] / 1e9:.2f} GB; code for sm_{capability}. "
        f"`{model['command']}`, sources {model['sources']}.",
        "",
        *grid(
            (
                "step", "launches: generated + library", "tensor TFLOP", "other GFLOP", "read GB", "written GB",
                "slots read / kept", "slots MB", "registers", *(f"{gpu.name} ms" for gpu in PRICED),
            ),
            [_priced(row) for row in (*made["steps"], *made["once"])],
        ),
        "",
        f"Over the full step; time on {' / '.join(gpu.name for gpu in PRICED)}:",
        "",
        *grid(
            ("step", "FLOPs", "bytes", "launches", "time", "time saved / FLOPs saved"),
            list(_shares(made["steps"])),
        ),
    ]  # fmt: skip
    for name, failure in made["failures"].items():
        lines.append(f"- failed: {name}: {failure}")
    return lines


def _priced(row: Report) -> list[str]:
    if "price" not in row:
        return [row["name"], *[""] * (7 + len(PRICED)), row["failure"]]
    price = row["price"]
    work = price["work"]
    reads = price["slot_read_bytes"] / price["slot_bytes"] if price["slot_bytes"] else None
    return [
        row["name"],
        f"{price['generated']} + {price['library']}",
        f"{work['tensor'] / 1e12:.3f}",
        f"{(work['floats'] + work['special']) / 1e9:.2f}",
        f"{price['read_bytes'] / 1e9:.3f}",
        f"{price['written_bytes'] / 1e9:.3f}",
        "" if reads is None else f"{reads:.2f}",
        f"{row['slot_bytes'] / 1e6:.0f}",
        str(price["registers"] or ""),
        *(f"{price['roofline_us'][gpu.name] / 1e3:.3f}" for gpu in PRICED),
    ]


def _shares(rows: list[Report]) -> Iterator[list[str]]:
    for row in rows:
        if "savings" not in row:
            continue
        each = [row["savings"][gpu.name] for gpu in PRICED]
        saved = [one["efficiency"] for one in each]
        yield [
            row["name"],
            f"{each[0]['flops']:.2%}",
            f"{each[0]['bytes']:.2%}",
            f"{each[0]['launches']:.1%}",
            " / ".join(f"{one['time']:.2%}" for one in each),
            "" if None in saved else " / ".join(f"{one:.0%}" for one in saved),
        ]


def _slots(rows: list[Report]) -> list[str]:
    headings = (
        "denoiser",
        "weights GB",
        "policy",
        "GB in a branch of guidance",
        "GB in all branches",
        "over the weights",
    )
    cells = [
        [
            row["title"], f"{row['weight_bytes'] / 1e9:.1f}", row["policy"], f"{row['branch_bytes'] / 1e9:.2f}",
            f"{row['bytes'] / 1e9:.2f} ({row['branches']})", f"{row['bytes'] / row['weight_bytes']:.0%}",
        ]
        for row in rows
    ]  # fmt: skip
    text = "What a policy keeps between steps, by the plan's own arithmetic, for one generation of one sample."
    return ["## Memory of kept values", "", text, "", *grid(headings, cells)]


def _rewrites(rows: list[Report]) -> list[str]:
    headings = ("denoiser", "rewrite", "step", "launches", "read GB", "written GB", f"{MAIN} ms")
    cells = [[row["title"], row["rewrite"], row["step"], *(_both(row, *each) for each in _COUNTED)] for row in rows]
    text = (
        "Steps without a rewrite of the compiler, and with it, where that makes a difference. "
        "`python -m benchmarks.cuda_codegen rewrites --models flux,hunyuan`."
    )
    return ["## What rewrites save", "", text, "", *grid(headings, cells)]


_COUNTED = (
    ("launches", 1, ".0f"), ("read_bytes", 1e9, ".3f"), ("written_bytes", 1e9, ".3f"), ("roofline_us", 1e3, ".3f"),
)  # fmt: skip


def _both(row: Report, name: str, unit: float, form: str) -> str:
    before, after = (row[when][name] / unit for when in ("before", "after"))
    return f"{before:{form}} → {after:{form}}"


def _numerics(rows: list[Report]) -> list[str]:
    headings = ("denoiser", "graphs", "kernels", "largest difference", "failed")
    cells = [
        [row["title"], str(row["graphs"]), str(row["kernels"]), _small(row["error"]), "; ".join(row["failures"])]
        for row in rows
    ]
    text = (
        "Generated kernels of small denoisers in float32 under Triton's interpreter, against the same graphs run "
        "operator by operator: the largest difference of any result or slot over its largest entry. In slots of 8 "
        "bits an entry between two roundings may go either way: by 1/127, 7.9e-3, in int8."
    )
    return ["## Numbers", "", text, "", *grid(headings, cells)]


def _small(number: float | None) -> str:
    return "" if number is None else f"{number:.1e}"


def _sources(report: Report) -> list[str]:
    rows = [
        [
            gpu.name, f"{gpu.tensor_flops / 1e12:g}", f"{gpu.float_flops / 1e12:g}", f"{gpu.bandwidth / 1e12:g}",
            f"{gpu.memory_bytes / 1e9:g}", gpu.source,
        ]
        for gpu in dict.fromkeys((*PRICED, *COMPILED_FOR.values()))
    ]  # fmt: skip
    headings = ("GPU", "bfloat16 TFLOP/s", "float32 TFLOP/s", "TB/s", "GB", "source")
    versions = {name: number for model in report["models"].values() for name, number in model["versions"].items()}
    return [
        "## Data sheets", "", *grid(headings, rows), "",
        ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]  # fmt: skip
