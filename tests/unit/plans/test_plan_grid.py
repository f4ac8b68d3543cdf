import re

from random_plans import random_plan

from soda_compile.plans.actions import COMPUTE, REUSE
from soda_compile.plans.plan import Plan, compute_all_plan
from soda_compile.plans.plan_grid import collapse


def test_golden():
    row = (COMPUTE, REUSE, REUSE, COMPUTE, *(REUSE,) * 9)
    regions = tuple(f"transformer_blocks.{index}.{module}" for index in range(3) for module in ("attn1", "ff"))
    plan = Plan("abc", (*regions, "head"), (row,) * 6 + ((COMPUTE,) * 13,), flop_ratio=0.25)
    assert plan.grid(80).splitlines() == [
        "step                                         1",
        "                                   0123456789012",
        "anchors                            A..A.........",
        "transformer_blocks.0-2.attn1 (x3)  CrrCrrrrrrrrr",
        "transformer_blocks.0-2.ff (x3)     CrrCrrrrrrrrr",
        "head                               CCCCCCCCCCCCC",
        "",
        "C compute 25 (27%), r reuse 66 (73%), 1 forecast1 0 (0%), 2 forecast2 0 (0%)",
        "7 regions x 13 steps, 2 anchor steps, 0.250 of the FLOPs",
    ]
    assert compute_all_plan(["a"], 3).grid(80).splitlines()[:3] == ["step     012", "anchors  AAA", "a        CCC"]


def test_collapse_joins_only_equal_rows():
    regions = ["b.0.x", "b.1.x", "b.2.x", "b.3.x", "b.5.x", "b.4.x.2", "other", "b.10", "b2.x"]
    rows = ["Cr", "Cr", "CC", "Cr", "Cr", "Cr", "Cr", "Cr", "Cr"]
    assert collapse(regions, rows) == [
        ("b.0-1,3,5.x (x4)", "Cr"),
        ("b.2.x", "CC"),
        ("b.4.x.2", "Cr"),
        ("other", "Cr"),
        ("b.10", "Cr"),
        ("b2.x", "Cr"),
    ]


def test_many_steps_wrap_and_lose_nothing():
    regions = [f"transformer_blocks.{index}.attn1" for index in range(4)]
    plan = random_plan(0, regions, 250)
    for width in (20, 80, 132, 400):
        lines = plan.grid(width).splitlines()
        if width >= 80:
            assert max(map(len, lines[:-2])) <= width
        for region, row in zip(plan.regions, plan.rows, strict=True):
            assert "".join(line.split()[1] for line in lines if line.startswith(region)) == row
        marks = "".join(line.split()[1] for line in lines if line.startswith("anchors"))
        assert tuple(match.start() for match in re.finditer("A", marks)) == plan.anchors
    assert str(plan) == plan.grid()
