"""The tree of a structure: equal blocks collapse, amounts and shares add up, and nothing found is left out."""

import re
from dataclasses import replace

import pytest
import torch
from torch import fx

from soda_compile.ir.structure import BlockCall, BlockGraph, Cut, Note, Region, Structure
from soda_compile.ir.tree import amount, render


def cut(*shape, dtype=torch.float32):
    tensor = torch.empty(shape, dtype=dtype)
    return Cut("linear", shape, tensor.stride(), dtype, tensor.device, tensor.nbytes)


def region(name, kind, flops, *cuts):
    return Region(name, kind, cuts, ("mul",) * len(cuts), ("add",) * len(cuts), flops, ())


def block(key, flops, regions=(), notes=()):
    return BlockGraph(key, fx.GraphModule(torch.nn.Module(), fx.Graph()), tuple(regions), tuple(notes), flops)


def structure(*calls):
    made = tuple(BlockCall(name, graph, (), ()) for name, graph in calls)
    return Structure(made, (), {}, (), (), ())


ATTENTION = region("attn", "attention", 300_000, cut(2, 8, 16), cut(2, 4, 16, dtype=torch.bfloat16))
MLP = region("ff", "mlp", 600_000, cut(2, 8, 16))
MODULATION = Note("blocks.0.norm.linear (aten.linear, 1e+05 FLOPs)", "conditioning: not on the stream")
FIRST = block("a", 1_000_000, [ATTENTION, MLP], [MODULATION])
HEAD = block("h", 1_000_000, (), [Note("proj (aten.conv2d)", "no residual add [follows] it here")])


@pytest.fixture
def model():
    return structure(("(head)", HEAD), *((f"blocks.{index}", FIRST) for index in (0, 1, 2, 4)))


def test_the_whole_tree(model):
    assert render(model, "Toy[0]", width=100).splitlines() == [
        "Toy[0]  5.00 MFLOP",
        "├── (head)  1.00 MFLOP (20.0%)",
        "│   └── left alone, no residual add [follows] it here:",
        "│       └── proj (aten.conv2d)",
        "└── blocks.0-2,4 (x4)  1.00 MFLOP (20.0%) each",
        "    ├── attn  attention  float32[2, 8, 16] 1.00 KiB + bfloat16[2, 4, 16] 256 B  300 kFLOP (6.0%)",
        "    ├── ff    mlp        float32[2, 8, 16] 1.00 KiB                             600 kFLOP (12.0%)",
        "    └── left alone, conditioning: not on the stream:",
        "        └── norm.linear (aten.linear, 1e+05 FLOPs)",
        "8 regions hold 3.60 MFLOP of 5.00 MFLOP (72.0%); one copy of all cuts takes 9.00 KiB",
    ]


def test_different_blocks_stay_apart_even_if_their_names_are_alike():
    other = block("b", 500_000, [region("", "attention+mlp", 400_000, cut(1, 2, 3))])
    text = render(structure(("blocks.0", FIRST), ("blocks.1", other), ("blocks.2", FIRST)), width=120)
    assert "blocks.0,2 (x2)" in text
    assert "blocks.1  500 kFLOP (20.0%)" in text
    assert "(whole block)  attention+mlp" in text


def test_equal_blocks_of_different_lists_share_a_line():
    text = render(structure(("double.0", FIRST), ("single.0", FIRST), ("single.1", FIRST)), width=120)
    assert "double.0, single.0-1 (x2)  1.00 MFLOP (33.3%) each" in text


def test_every_line_fits_the_width(model):
    lines = render(model, "Toy", width=50).splitlines()
    assert max(map(len, lines)) <= 50
    assert "conditioning" in " ".join(lines)


def test_what_passes_over_the_whole_graph_left_alone_comes_last(model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    noted = replace(model, notes=(Note("permute", "a view relies on its layout"),))
    assert str(noted).splitlines()[-3:-1] == ["└── left alone, a view relies on its layout:", "    └── permute"]


def test_color_changes_nothing_but_color(model):
    plain, coloured = (render(model, width=100, color=color) for color in (False, True))
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_a_model_without_regions_or_work():
    text = render(structure(("(tail)", block("t", 0))), width=100)
    assert "0 regions hold 0 FLOP of 0 FLOP (0.0%); one copy of all cuts takes 0 B" in text


@pytest.mark.parametrize(
    ("value", "base", "expected"),
    [
        (0, 1000, "0 X"),
        (999, 1000, "999 X"),
        (1000, 1000, "1.00 kX"),
        (999_600, 1000, "1.00 MX"),
        (55_115_776, 1000, "55.1 MX"),
        (123_456, 1000, "123 kX"),
        (2.5e15, 1000, "2.50 PX"),
        (4e18, 1000, "4000 PX"),
        (65536, 1024, "64.0 KiX"),
        (1023, 1024, "1023 X"),
        (2**30, 1024, "1.00 GiX"),
    ],
)
def test_amounts(value, base, expected):
    assert amount(value, "X", base) == expected
