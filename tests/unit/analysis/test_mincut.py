"""Minimum cuts of hand-made graphs."""

from typing import Any

import torch
from torch import fx

from soda_compile.analysis.mincut import minimum_cut

aten = torch.ops.aten


class Builder:
    """A graph whose nodes get shapes by running the operators on meta tensors."""

    def __init__(self) -> None:
        self.graph = fx.Graph()

    def input(self, *shape: int, dtype: torch.dtype = torch.float32) -> fx.Node:
        node = self.graph.placeholder("x")
        node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        values, named = fx.map_arg((args, kwargs), lambda source: source.meta["val"])
        node.meta["val"] = target(*values, **named)
        return node

    def linear(self, source: fx.Node, features: int) -> fx.Node:
        weight = self.input(features, source.meta["val"].shape[-1])
        return self.call(aten.linear.default, source, weight)

    def cut(self, heavy: list[fx.Node], branches: list[fx.Node]) -> list[fx.Node]:
        """The minimum cut, with what lies between computed as it is for a region."""
        after = set(heavy)
        for node in self.graph.nodes:
            if after & set(node.all_input_nodes):
                after.add(node)
        before = set(branches)
        for node in reversed(list(self.graph.nodes)):
            if before & set(node.users):
                before.add(node)
        return minimum_cut(heavy, branches, [node for node in self.graph.nodes if node in after & before])


def test_the_narrower_tensor_is_stored():
    build = Builder()
    wide = build.linear(build.input(2, 8), 32)
    narrow = build.call(aten.slice.Tensor, wide, 1, 0, 8)
    again = build.call(aten.expand.default, build.call(aten.unsqueeze.default, narrow, 0), [3, 2, 8])
    assert build.cut([wide], [again]) == [narrow]


def test_of_equal_tensors_the_one_nearest_to_the_heavy_work():
    build = Builder()
    heavy = build.linear(build.input(2, 8), 8)
    gated = build.call(aten.mul.Tensor, build.input(2, 8), heavy)
    scaled = build.call(aten.mul.Tensor, gated, 2.0)
    assert build.cut([heavy], [scaled]) == [heavy]


def test_all_of_a_chain_of_heavy_work_lies_before_the_cut():
    build = Builder()
    first = build.linear(build.input(2, 8), 4)
    second = build.linear(first, 8)
    assert build.cut([first, second], [build.call(aten.neg.default, second)]) == [second]


def test_a_cast_that_doubles_the_bytes_is_not_stored():
    build = Builder()
    heavy = build.call(
        aten.linear.default, build.input(2, 8, dtype=torch.bfloat16), build.input(8, 8, dtype=torch.bfloat16)
    )
    wide = build.call(aten._to_copy.default, heavy, dtype=torch.float32)
    assert build.cut([heavy], [wide]) == [heavy]


def test_a_cast_that_halves_the_bytes_is_stored():
    build = Builder()
    heavy = build.linear(build.input(2, 8), 8)
    narrow = build.call(aten._to_copy.default, heavy, dtype=torch.bfloat16)
    assert build.cut([heavy], [build.call(aten._to_copy.default, narrow, dtype=torch.float32)]) == [narrow]


def test_two_branches_of_common_work_have_a_joint_cut():
    build = Builder()
    common = build.linear(build.input(2, 8), 8)
    left, right = build.linear(common, 2), build.linear(common, 3)
    branches = [build.call(aten.neg.default, left), build.call(aten.neg.default, right)]
    assert build.cut([common, left, right], branches) == [left, right]


def test_common_work_is_stored_once_where_that_is_smaller():
    build = Builder()
    common = build.linear(build.input(2, 8), 4)
    branches = [build.call(aten.mul.Tensor, common, build.input(6, 2, 4)) for _ in range(2)]
    assert build.cut([common], branches) == [common]


def test_a_list_of_tensors_cannot_be_stored():
    build = Builder()
    heavy = build.linear(build.input(2, 8), 12)
    parts = build.call(aten.split.Tensor, heavy, 4, -1)
    first, last = (build.call(_item, parts, index) for index in (0, 2))
    assert build.cut([heavy], [first, last]) == [first, last]
    total = build.call(aten.add.Tensor, first, last)
    assert build.cut([heavy], [total]) == [total]


def _item(values: Any, index: int) -> Any:
    return values[index]


def test_a_branch_that_is_itself_heavy_is_the_cut():
    build = Builder()
    heavy = build.linear(build.input(2, 8), 8)
    assert build.cut([heavy], [heavy]) == [heavy]
