"""From Dynamo's graph to functional ATen with names and paths."""

import operator

import pytest
import torch
from torch import Tensor, nn
from tracing import run, trace

from soda_compile.capture.normalisation import capture
from soda_compile.capture.sources import clean_path
from soda_compile.errors import CaptureError
from soda_compile.ir.captured import Captured

X = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("L['self']._modules['blocks']._modules['0']._parameters['weight']", "blocks.0.weight"),
        ("L['self'].blocks[0].attn.to_out[0]", "blocks.0.attn.to_out.0"),
        ("L['self'].__dict__['_modules']['blocks']._modules['12']", "blocks.12"),
        ("L['self'].__dict__['_parameters']['table']", "table"),
        ("L['self']._modules['norm']._buffers['table']", "norm.table"),
        ("L['hidden_states']", "hidden_states"),
        ("L['kwargs']['timestep']", "timestep"),
        ("L['args'][0]", "args.0"),
        ("L['self']", "self"),
        ("L['fn']._modules['0']._parameters['weight']", "0.weight"),
        ("G['table']", "table"),
        ("", ""),
    ],
)
def test_clean_path(source: str, path: str):
    assert clean_path(source) == path


def targets(captured: Captured) -> set[str]:
    return {str(node.target) for node in captured.graph.nodes if node.op == "call_function"}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.GELU())
        self.register_buffer("table", torch.arange(4.0))

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return self.net(x + self.table) * scale


def test_inputs_have_paths_and_names_and_the_model_its_own():
    captured = trace(Model(), X, scale=torch.ones(()))
    found = dict(zip(captured.paths, zip(captured.inputs, captured.parameters, strict=True), strict=True))
    assert found == {
        "x": ("x", False),
        "scale": ("scale", False),
        "table": ("p_table", True),
        "net.0.weight": ("p_net_0_weight", True),
        "net.0.bias": ("p_net_0_bias", True),
    }
    assert captured.inputs == tuple(node.name for node in captured.graph.find_nodes(op="placeholder"))
    assert captured.constants == {}


def test_operators_stay_whole_and_know_their_modules():
    captured = trace(Model(), X, scale=torch.ones(()))
    assert {"aten.linear.default", "aten.gelu.default"} <= targets(captured)
    paths = {node.name: node.meta["paths"] for node in captured.graph.nodes if node.op == "call_function"}
    assert paths["linear"][-2:] == ("net", "net.0")
    assert paths["gelu"][-1] == "net.1"


class Table(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([1.0, 2.0, 3.0, 4.0])


def test_tensors_made_on_the_way_are_lifted():
    captured = trace(Table(), X)
    ((name, value),) = captured.constants.items()
    assert torch.equal(value, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert name not in captured.inputs
    (out, *_) = run(captured.graph, **{"x": X, name: value})
    assert torch.equal(out, Table()(X))


class InPlace(nn.Module):
    """Writes to what it made itself, through a view."""

    def forward(self, x: Tensor) -> Tensor:
        out = x.clone()
        out[:, 1:3] += 1
        out.mul_(2)
        return out


def test_writes_to_own_tensors_become_functional():
    captured = trace(InPlace(), X)
    assert not [target for target in targets(captured) if target.partition(".default")[0].endswith("_")]
    assert torch.equal(run(captured.graph, x=X)[0], InPlace()(X))


class ChangesInput(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        hidden.add_(1)
        return hidden * 2


class ChangesBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x * self.count


in_place = pytest.mark.parametrize(
    ("model", "name"), [(ChangesInput(), "hidden"), (ChangesBuffer(), "count")], ids=["input", "buffer"]
)


@in_place
def test_a_change_of_an_input_is_refused(model: nn.Module, name: str):
    with pytest.raises(Exception, match=r"CaptureError: the denoiser changes .* in place .*return the new value"):
        trace(model, X.clone())


@in_place
def test_the_refusal_names_the_input(model: nn.Module, name: str):
    with pytest.raises(Exception, match=rf"the denoiser changes {name} in place"):
        trace(model, X.clone())


class Data(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.data * 2 + x


def test_data_is_read_as_an_alias():
    captured = trace(Data(), X)
    assert torch.equal(run(captured.graph, x=X)[0], 3 * X)


class Chunks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second, third = x.chunk(3, dim=-1)
        y = first.exp()
        z = second.sin() + y
        return z * third


def test_items_stand_right_behind_what_they_are_taken_from():
    captured = trace(Chunks(), torch.randn(2, 6))
    nodes = list(captured.graph.nodes)
    items = [index for index, node in enumerate(nodes) if node.target is operator.getitem]
    producer = nodes.index(nodes[items[0]].args[0])
    assert items == [producer + 1, producer + 2, producer + 3]
    captured.graph.lint()
    x = torch.randn(2, 6)
    assert torch.equal(run(captured.graph, x=x)[0], Chunks()(x))


class ByHalf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] // 2, 2, -1) + x.shape[0]


def test_sizes_are_static():
    captured = trace(ByHalf(), X)
    for node in captured.graph.nodes:
        assert "Sym" not in str(node.args)
    assert torch.equal(run(captured.graph, x=X)[0], ByHalf()(X))


def test_what_export_cannot_follow_is_an_error_that_says_what_to_do():
    broken = torch.fx.Graph()
    x = broken.placeholder("x")
    broken.output((broken.call_function(_fails, (x,)),))
    with pytest.raises(CaptureError, match=r"(?s)could not normalise.*no such thing.*backend='inductor'"):
        capture(torch.fx.GraphModule(nn.Module(), broken), [X])


def _fails(x: Tensor) -> Tensor:
    raise RuntimeError("no such thing")


@pytest.mark.parametrize("part", [(slice(None), slice(None)), (slice(2), slice(3)), (slice(1, 4), slice(2))])
@pytest.mark.parametrize("value", [0, 2.5])
def test_diagonals_of_views_are_filled(part: tuple[slice, slice], value: float) -> None:
    """As the masks of perturbed attention are made; the operator itself cannot be captured on a view of a view."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mask = torch.zeros(x.shape[0], x.shape[0])
            mask[part].fill_(float("-inf"))
            filled = mask[part].fill_diagonal_(value)
            return mask + x, filled * 2

    x = torch.randn(5, 5)
    found = run(trace(Masked(), x).graph, x=x)
    for mine, wanted in zip(found, Masked()(x), strict=True):
        torch.testing.assert_close(mine, wanted)
