"""One call of a model as graphs: whole, with tables, in several graphs, over plain tensors, within hooks."""

import pytest
import torch
from plain_models import Breaks, Listed, TimmBlock, inputs
from quantised import quantise
from torch import Tensor, nn

import soda_compile
from soda_compile.capture.forward import own_holder
from soda_compile.capture.model import capture_model
from soda_compile.compiler.analyse import analyse_model
from soda_compile.errors import CaptureError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, *, scale: float = 2.0) -> Tensor:
        return self.linear(hidden) * scale


class Table(Model):
    """Makes a table at its first call, in a way that cannot be captured."""

    def forward(self, hidden: Tensor, *, scale: float = 2.0) -> Tensor:
        if not hasattr(self, "table"):
            torch._dynamo.graph_break()
            self.table = torch.ones(4)
        return super().forward(hidden * self.table, scale=scale)


class Counts(Model):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden: Tensor, *, scale: float = 2.0) -> Tensor:
        self.calls.add_(1)
        return super().forward(hidden, scale=scale)


class Constant(nn.Module):
    def forward(self, hidden: Tensor) -> int:
        return len(hidden.shape)


@pytest.mark.parametrize("kind", [Model, Table])
def test_one_graph_with_what_went_in_and_came_out(kind: type[Model]) -> None:
    model, hidden = kind(), torch.ones(1, 4)
    call = capture_model(model, (hidden,), {"scale": 3.0})
    assert call.reason is None
    (run,) = call.runs
    assert run.captured is not None
    assert any(value is hidden for value in run.inputs)
    assert any(value is call.result for value in run.outputs)
    torch.testing.assert_close(call.result, model(hidden, scale=3.0))
    assert "forward" not in vars(model)


def test_several_graphs_with_the_reason() -> None:
    call = capture_model(Breaks(TimmBlock).eval(), (), inputs())
    assert len(call.runs) == 2
    assert "Data-dependent" in str(call.reason)


def test_weights_are_plain_tensors() -> None:
    (run,) = capture_model(quantise(Model()), (torch.ones(1, 4),), {}).runs
    assert run.captured is not None
    assert {"linear.weight.values_", "linear.weight.scale"} <= set(run.captured.paths)
    assert [type(value) for value in run.inputs if isinstance(value, Tensor) and value.dtype == torch.int8] == [Tensor]


def test_hooks_run_where_they_are_wanted() -> None:
    model, seen = Model(), []
    model.register_forward_pre_hook(lambda *_: seen.append("hook"))
    capture_model(model, (torch.ones(1, 4),), {})
    assert not seen
    capture_model(model, (torch.ones(1, 4),), {}, holders=own_holder)
    assert seen == ["hook"]


def test_what_is_not_supported_is_our_error_and_not_dynamos() -> None:
    with pytest.raises(CaptureError, match="changes calls in place"):
        capture_model(Counts(), (torch.ones(1, 4),), {})
    with pytest.raises(CaptureError, match="Constant calls no operator"):
        capture_model(Constant(), (torch.ones(1, 4),), {})


def test_a_quantised_model_has_the_regions_of_the_plain_one() -> None:
    model = Listed(TimmBlock).eval()
    names = soda_compile.inspect(model, **inputs()).region_names
    assert len(names) == 6
    assert soda_compile.inspect(quantise(model), **inputs()).region_names == names


def test_a_quantised_model_in_several_graphs() -> None:
    names = soda_compile.inspect(Listed(TimmBlock).eval(), **inputs()).region_names
    assert analyse_model(quantise(Breaks(TimmBlock).eval()), (), inputs()).region_names == names


def test_any_number_of_models_of_a_class() -> None:
    """More than Dynamo compiles of one code object."""
    for _ in range(torch._dynamo.config.recompile_limit + 1):
        soda_compile.inspect(Model(), torch.ones(1, 4))


def test_a_structure_prints_as_a_tree() -> None:
    structure = soda_compile.inspect(Listed(TimmBlock).eval(), **inputs())
    text = str(structure)
    assert "blocks.0-2 (x3)" in text
    assert "6 regions hold" in text
    assert repr(structure) == "<Structure of 6 regions in 5 calls of 3 graphs>"
