"""Taking tokens after a function of them, or before it."""

import pytest
import torch
from golden import golden, text
from torch import Tensor, fx, nn
from torch.nn import functional
from toys import gated, joint
from tracing import run, trace

from soda_compile.ir.graphs import add_call
from soda_compile.ir.structure import Region
from soda_compile.passes.dead_code import DeadCode
from soda_compile.passes.prune_tokens import PruneTokens
from soda_compile.passes.selection import Place, Tokens, take
from soda_compile.passes.sink_gathers import SinkGathers
from soda_compile.plans.actions import prune
from soda_compile.plans.pruning import Pruning

ROWS, COUNT, WIDTH, KEPT = 2, 6, 8, 3


def test_golden():
    graph, region = gated()
    PruneTokens(0, region, ("h",), prune(0.5), Pruning("random")).apply(graph)
    result = SinkGathers(region).apply(graph)
    DeadCode().apply(graph)
    assert (result.changed, result.skipped) == (("linear: keeps 67% of its work",), ())
    assert text(graph) == golden("""
        %h: f32[2, 3, 4] = input
        %p_linear_weight: f32[4, 4] = input
        %gate: f32[2, 1, 4] = input
        %slot_linear: f32[2, 3, 4] = input
        %random_h: f32[3] = input
        %expand_default: f32[2, 3] = expand(%random_h, (2, 3))
        %topk_default: (f32[2, 2], i64[2, 2]) = topk(%expand_default, 2)
        %getitem: i64[2, 2] = getitem(%topk_default, 1)
        %reshape_default: i64[2, 2, 1] = reshape(%getitem, (2, 2, 1))
        %expand_default_1: i64[2, 2, 4] = expand(%reshape_default, (2, 2, 4))
        %reshape_default_1: i64[2, 2, 1] = reshape(%getitem, (2, 2, 1))
        %expand_default_2: i64[2, 2, 4] = expand(%reshape_default_1, (2, 2, 4))
        %gather_default_1: f32[2, 2, 4] = gather(%h, 1, %expand_default_2)
        %silu_default: f32[2, 2, 4] = silu(%gather_default_1)
        %linear_default: f32[2, 2, 4] = linear(%silu_default, %p_linear_weight)
        %scatter_src: f32[2, 3, 4] = scatter(%slot_linear, 1, %expand_default_1, %linear_default)
        %mul: f32[2, 3, 4] = mul(%gate, %scatter_src)
        %add: f32[2, 3, 4] = add(%h, %mul)
        return (%add)
    """)


def test_streams_attend_apart_with_the_keys_of_both():
    graph, region = joint()
    PruneTokens(0, region, ("h", "c"), prune(0.5), Pruning("random")).apply(graph)
    SinkGathers(region).apply(graph)
    DeadCode().apply(graph)
    queries = [
        node.args[0].meta["val"].shape[1]
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default)
    ]
    assert queries == [2, 2]  # of 5: those wanted of one stream, all of the other


def heads(x: Tensor) -> Tensor:
    return x.view(ROWS, COUNT, 2, 4).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(ROWS, COUNT, WIDTH)


def attend(x: Tensor, mask: Tensor | None = None) -> Tensor:
    return merged(functional.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=mask))


def grouped_queries(x: Tensor) -> Tensor:
    keys = heads(x)[:, :1]
    return merged(functional.scaled_dot_product_attention(heads(x), keys, keys, enable_gqa=True))


def attention_by_products(x: Tensor) -> Tensor:
    flat = heads(x).reshape(ROWS * 2, COUNT, 4)
    weights = torch.baddbmm(torch.zeros(1, 1, 1), flat, flat.transpose(1, 2)).softmax(dim=-1)
    return merged(torch.bmm(weights, flat).view(ROWS, 2, COUNT, 4))


def rotary(x: Tensor) -> Tensor:
    table = torch.linspace(0, 1, COUNT * 4).view(COUNT, 4)
    even, odd = heads(x).unflatten(-1, (2, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return merged(heads(x) * table.cos() + turned * table.sin())


def complex_rotary(x: Tensor) -> Tensor:
    table = torch.polar(torch.ones(COUNT, 2), torch.linspace(0, 1, COUNT * 2).view(COUNT, 2))
    pairs = torch.view_as_complex(x.view(ROWS, COUNT, 2, 2, 2)) * table[:, None]
    return torch.view_as_real(pairs).flatten(2)


def item_assignment(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[..., 0::2] = x[..., 1::2]
    out[..., 1::2] = -x[..., 0::2]
    return out.type_as(x.flatten(1))


def in_a_longer_sequence(x: Tensor) -> Tensor:
    longer = torch.cat([x.new_ones(ROWS, 2, WIDTH), x], dim=1)
    return functional.gelu(longer)[:, 2:]


def split_sequence(x: Tensor) -> Tensor:
    longer = torch.cat([x.new_ones(ROWS, 2, WIDTH), x], dim=1) * 2
    return longer.split([2, COUNT], dim=1)[1]


def linear_attention(x: Tensor) -> Tensor:
    queries = x.relu().transpose(1, 2)
    return (torch.eye(WIDTH).expand(ROWS, -1, -1) @ queries).transpose(1, 2)


def assigned_after_a_prefix(x: Tensor) -> Tensor:
    longer = torch.cat([x.new_ones(ROWS, 2, WIDTH), x], dim=1) + 1
    longer[:, 2:] = longer[:, 2:] * 3
    return longer[:, 2:]


SINK = {
    "elementwise": lambda x: functional.gelu(x * 2 + 1),
    "broadcast": lambda x: x * torch.ones(ROWS, 1, WIDTH) + torch.ones(WIDTH),
    "table of tokens": lambda x: x + torch.linspace(0, 1, COUNT)[:, None],
    "table of rows and tokens": lambda x: x * torch.linspace(0, 1, ROWS * COUNT).view(ROWS, COUNT, 1),
    "linear": lambda x: functional.linear(x, torch.linspace(-1, 1, WIDTH * WIDTH).view(WIDTH, WIDTH)),
    "matmul": lambda x: x @ torch.linspace(-1, 1, WIDTH * WIDTH).view(WIDTH, WIDTH),
    "layer norm": lambda x: functional.layer_norm(x, [WIDTH]),
    "rms norm": lambda x: functional.rms_norm(x, [WIDTH]),
    "norm by hand": lambda x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True) + 1),
    "reduction": lambda x: x * (x.square().sum(-1) + x.amax(-1)).unsqueeze(-1),
    "softmax": lambda x: x.softmax(-1),
    "cast": lambda x: x.double().to(torch.float32),
    "chunks": lambda x: torch.cat(list(reversed(x.chunk(2, dim=-1))), dim=-1),
    "select": lambda x: x.view(ROWS, COUNT, 2, 4)[:, :, 1].repeat_interleave(2, -1),
    "expand": lambda x: x[:, :, None].expand(-1, -1, 2, -1).select(2, 1),
    "permutes": lambda x: x.permute(1, 2, 0).sigmoid().permute(2, 0, 1),
    "heads": lambda x: merged(heads(x).exp()),
    "attention": attend,
    "masked attention": lambda x: attend(x, torch.eye(COUNT).bool()),
    "key mask": lambda x: attend(x, torch.ones(1, 1, 1, COUNT).bool()),
    "grouped queries": grouped_queries,
    "products": attention_by_products,
    "rotary": rotary,
    "complex rotary": complex_rotary,
    "item assignment": item_assignment,
    "linear attention": linear_attention,
    "assigned after a prefix": assigned_after_a_prefix,
    "longer sequence": in_a_longer_sequence,
    "split sequence": split_sequence,
}


def convolved(x: Tensor) -> Tensor:
    return functional.conv1d(x.transpose(1, 2), torch.ones(WIDTH, 1, 3), padding=1, groups=WIDTH).transpose(1, 2)


def causal(x: Tensor) -> Tensor:
    return merged(functional.scaled_dot_product_attention(heads(x), heads(x), heads(x), is_causal=True))


def merged_axes(x: Tensor) -> Tensor:
    return x.reshape(ROWS * COUNT, WIDTH).exp().view(ROWS, COUNT, WIDTH)


def norm_over_tokens(x: Tensor) -> Tensor:
    return functional.layer_norm(x.transpose(1, 2), [COUNT]).transpose(1, 2)


def tokens_as_features(x: Tensor) -> Tensor:
    return functional.linear(x.transpose(1, 2), torch.eye(COUNT)).transpose(1, 2)


STAY = {
    "convolution": (convolved, "mixes tokens"),
    "reversed": (lambda x: (x - x.mean(1, keepdim=True)).flip(1), "mixes tokens"),
    "softmax over tokens": (lambda x: x.softmax(1), "runs over tokens"),
    "merged axes": (merged_axes, "merges the token axis"),
    "causal": (causal, "causal"),
    "norm over tokens": (norm_over_tokens, "over tokens"),
    "tokens as features": (tokens_as_features, "output features"),
    "two streams": (lambda x: torch.cat([x[:, :2], x[:, 2:]], dim=1) + 1, "token groups are put together"),
}

# Keys and values come from all tokens.
ATTEND = [SINK[name] for name in ("attention", "masked attention", "key mask", "grouped queries", "products")]


class Branch(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return h + self.function(h)


def sink(function) -> tuple:
    """The result on random tokens, the function's own there, and why sinking stopped."""
    captured = trace(Branch(function), torch.randn(ROWS, COUNT, WIDTH))
    graph = captured.graph
    add = next(iter(reversed(graph.nodes))).args[0][0]
    branch = add.args[1]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        index = graph.placeholder("index")
        index.meta["val"] = branch.meta["val"].new_empty((ROWS, KEPT), dtype=torch.int64)
    with graph.inserting_before(add):
        tokens = Tokens(COUNT, ROWS, index)
        taken = take(graph, branch, tokens, Place(axis=1))
        taken.meta["tokens"] = tokens
        same = add_call(graph, torch.ops.aten.alias.default, taken)
    next(iter(reversed(graph.nodes))).args = ((same,),)
    region = Region("branch", "mlp", (), (branch.name,), ("h",), 1, ())
    result = SinkGathers(region).apply(graph)
    DeadCode().apply(graph)
    graph.lint()
    h = torch.randn(ROWS, COUNT, WIDTH)
    chosen = torch.stack([torch.randperm(COUNT)[:KEPT] for _ in range(ROWS)])
    known = {node.name for node in graph.find_nodes(op="placeholder")}
    constants = {name: value for name, value in captured.constants.items() if name in known}
    (value,) = run(graph, h=h, index=chosen, **constants)
    expected = torch.stack([function(h)[row, chosen[row]] for row in range(ROWS)])
    return value, expected, [note.reason for note in result.skipped], graph


@pytest.mark.parametrize("function", SINK.values(), ids=SINK)
def test_sinks_to_the_carry(function):
    torch.manual_seed(0)
    value, expected, stops, graph = sink(function)
    torch.testing.assert_close(value, expected)
    assert stops == []
    assert function in ATTEND or _computed_for_all(graph) == []


@pytest.mark.parametrize(("function", "reason"), STAY.values(), ids=STAY)
def test_stays_where_tokens_mix_and_says_why(function, reason):
    torch.manual_seed(0)
    value, expected, stops, _ = sink(function)
    torch.testing.assert_close(value, expected)
    assert any(reason in stop for stop in stops), stops


def _computed_for_all(graph) -> list[str]:
    """Nodes that depend on the carry and still hold every token."""
    dependent: set[fx.Node] = set()
    for node in graph.nodes:
        if node.name == "h" or dependent & set(node.all_input_nodes):
            dependent.add(node)
    return [node.name for node in dependent if node.op == "call_function" and COUNT in node.meta["val"].shape]
