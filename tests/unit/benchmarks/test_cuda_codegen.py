"""The arithmetic of counting kernels, which needs neither a GPU nor a compiler for one."""

import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from tracing import trace

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.cuda_codegen.arithmetic import Arithmetic
from benchmarks.cuda_codegen.boundaries import Kernel
from benchmarks.cuda_codegen.compiling import CompiledGraph
from benchmarks.cuda_codegen.cubins import Cubin, resources, spills
from benchmarks.cuda_codegen.datasheets import BY_NAME, COMPILED_FOR, PRICED
from benchmarks.cuda_codegen.deepening import deepened
from benchmarks.cuda_codegen.models import SUBJECTS
from benchmarks.cuda_codegen.prices import price, roofline, saving
from benchmarks.cuda_codegen.programs import Programs, StepProgram
from benchmarks.cuda_codegen.report import capability_entry, model_entry, read, write
from benchmarks.cuda_codegen.table import markdown
from soda_compile.compiler.analyse import analyse

H100 = BY_NAME["H100 SXM"]


def kernel(reads, writes, tensor=0, library=False):
    return Kernel("", library, reads, writes, Arithmetic(tensor=tensor))


def cubin(name, registers, spilled):
    return Cubin(name, f"{name}{registers}", "", registers, spilled, spilled, 0, 100)


def graph(*kernels, slots=None, cubins=()):
    return CompiledGraph("", tuple(kernels), tuple(cubins), slots or {}, "", 0.0)


def test_resources_of_a_cubin():
    text = "Resource usage:\n Common:\n  GLOBAL:0\n Function f:\n  REG:40 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:592\n"
    assert resources(text)["REG"] == 40
    assert resources(text)["STACK"] == 16
    assert spills("    16 bytes stack frame, 12 bytes spill stores, 24 bytes spill loads") == 12
    with pytest.raises(ValueError, match="no resource usage"):
        resources("")


def test_a_kernel_takes_the_longest_of_its_units():
    moved = kernel({"x": 3_350_000}, {})
    assert roofline(moved, H100) == pytest.approx(1e-6)
    assert roofline(kernel({"x": 1}, {}, tensor=989_400_000), H100) == pytest.approx(1e-6)


def test_a_step_adds_up_the_graphs_that_it_calls():
    made = {
        "a": graph(
            kernel({"arg0_1": 10, "arg1_1": 20}, {"buf0": 5}),
            kernel({"arg1_1": 20}, {"arg1_1": 20}, tensor=7, library=True),
            slots={"arg1_1": 20},
            cubins=[cubin("f", 40, 8), cubin("f", 32, 0), cubin("g", 50, 4)],
        ),
        "b": graph(kernel({"arg0_1": 1}, {"buf0": 1})),
    }
    found = price(Counter({"a": 2, "b": 1}), made)
    assert (found.generated, found.library, found.launches) == (3, 2, 5)
    assert (found.read_bytes, found.written_bytes) == (101, 51)
    assert (found.slot_read_bytes, found.slot_bytes, found.slot_written_bytes) == (80, 40, 40)
    assert found.work.tensor == 14
    assert found.registers == 50
    assert found.spilling == 2, "only one kernel spills in all of its configurations"
    assert set(found.roofline_us) == {gpu.name for gpu in PRICED}


def test_shares_of_the_full_step():
    made = {
        "full": graph(*[kernel({"x": 100}, {"y": 100}, tensor=10**12)] * 4),
        "stale": graph(kernel({"x": 100}, {"y": 100}, tensor=10**12)),
    }
    full, stale = (price(Counter({key: 1}), made) for key in made)
    found = saving(stale, full, H100.name)
    assert (found.time, found.bytes, found.flops, found.launches) == pytest.approx((0.25, 0.25, 0.25, 0.25))
    assert found.efficiency == pytest.approx(1)
    assert saving(full, full, H100.name).efficiency is None


def test_code_is_compiled_for_boards_of_the_capability():
    assert all(gpu.capability == capability for capability, gpu in COMPILED_FOR.items())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        return h + self.linear(h) * time


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(count)])

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        h = h.sin()
        for block in self.blocks:
            h = block(h, time)
        return h.cos()


def test_layers_repeated_are_those_captured():
    h, time = torch.randn(2, 3, 4), torch.randn(2, 1, 1)
    shallow, deep = (analyse(trace(Layers(count), h, time)) for count in (3, 5))
    made = deepened(shallow, {"blocks": 5})
    assert made.region_names == deep.region_names
    assert made.fingerprint == deep.fingerprint
    assert sorted(made.paths) == sorted(deep.paths)
    assert [call.block.key for call in made.calls] == [call.block.key for call in deep.calls]
    assert (made.flops, made.weight_bytes) == (deep.flops, deep.weight_bytes)
    for before, call in itertools.pairwise(made.calls):
        assert set(before.outputs) <= set(call.inputs), "each layer reads the one before"
    assert deepened(shallow, {"blocks": 2}) is shallow


def test_a_report_is_written_with_its_table(tmp_path):
    kernels = graph(kernel({"x": 10}, {"y": 10}, tensor=10**12, library=True), cubins=[cubin("f", 40, 8)])
    programs = Programs([StepProgram("compute", Counter("a"), 10**12, 0), StepProgram("reuse", Counter("b"), 0, 10**6)])
    made = {"a": kernels, "b": graph(kernel({"x": 1}, {"y": 1}))}
    entry = model_entry(SUBJECTS["dit"], 10**9, programs, "the command")
    entry["capabilities"]["90"] = capability_entry(programs, made)
    path = tmp_path / "report.json"
    report = read(path)
    report["models"]["dit"] = entry
    broken = {**made, "b": CompiledGraph("", (), (), {}, "it broke", 0.0)}
    report["models"]["broken"] = {**entry, "capabilities": {"90": capability_entry(programs, broken)}}
    write(path, report, markdown(report))
    assert read(path) == report
    text = path.with_suffix(".md").read_text()
    assert "Counts, not measurements" in text
    assert "it broke" in text
