import torch
from golden import golden, text
from torch import Tensor, nn
from toys import seeded
from tracing import trace

from soda_compile.analysis.outline import Outlined, outline_blocks
from soda_compile.ir.captured import Captured


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, width, bias=False)
        self.fc2 = nn.Linear(width, 4, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.fc2(self.fc1(h))


class Stack(nn.Module):
    """An embedding, blocks of the given widths that run in the given order, and a head."""

    def __init__(self, widths: tuple[int, ...] = (8, 8), order: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.blocks = nn.ModuleList(Block(width) for width in widths)
        self.head = nn.Linear(4, 2)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for index in self.order:
            h = self.blocks[index](h)
        return self.head(h)


def outline(model: nn.Module, *args: Tensor) -> tuple[Captured, tuple[Outlined, ...]]:
    captured = trace(model, *args)
    return captured, outline_blocks(captured.graph, captured.outputs)


def names(calls: tuple[Outlined, ...]) -> list[str]:
    return [call.name for call in calls]


def execute(captured: Captured, calls: tuple[Outlined, ...], model: nn.Module, **inputs: Tensor) -> list[Tensor]:
    """Runs the calls one after the other, as a runtime does."""
    parameters = dict(model.named_parameters())
    values = {
        name: parameters[path] if owned else inputs[path]
        for name, path, owned in zip(captured.inputs, captured.paths, captured.parameters, strict=True)
    } | captured.constants
    with torch.no_grad():
        for call in calls:
            results = call.module(*[values[name] for name in call.inputs])
            values |= zip(call.outputs, results, strict=True)
    return [values[name] for name in captured.outputs if name]


def test_golden():
    captured, calls = outline(Stack(), torch.randn(3, 2))
    assert text(captured.graph) == golden("""
        %p_embed_weight: f32[4, 2] = input
        %p_embed_bias: f32[4] = input
        %x: f32[3, 2] = input
        %p_blocks_0_fc1_weight: f32[8, 4] = input
        %p_blocks_0_fc2_weight: f32[4, 8] = input
        %p_blocks_1_fc1_weight: f32[8, 4] = input
        %p_blocks_1_fc2_weight: f32[4, 8] = input
        %p_head_weight: f32[2, 4] = input
        %p_head_bias: f32[2] = input
        %linear: f32[3, 4] = linear(%x, %p_embed_weight, %p_embed_bias)
        %linear_1: f32[3, 8] = linear(%linear, %p_blocks_0_fc1_weight)
        %linear_2: f32[3, 4] = linear(%linear_1, %p_blocks_0_fc2_weight)
        %add: f32[3, 4] = add(%linear, %linear_2)
        %linear_3: f32[3, 8] = linear(%add, %p_blocks_1_fc1_weight)
        %linear_4: f32[3, 4] = linear(%linear_3, %p_blocks_1_fc2_weight)
        %add_1: f32[3, 4] = add(%add, %linear_4)
        %linear_5: f32[3, 2] = linear(%add_1, %p_head_weight, %p_head_bias)
        return (%linear_5)
    """)
    written = [f"{', '.join(call.outputs)} = {call.name}({', '.join(call.inputs)})" for call in calls]
    assert written == [
        "linear = (head)(x, p_embed_weight, p_embed_bias)",
        "add = blocks.0(linear, p_blocks_0_fc1_weight, p_blocks_0_fc2_weight)",
        "add_1 = blocks.1(add, p_blocks_1_fc1_weight, p_blocks_1_fc2_weight)",
        "linear_5 = (tail)(add_1, p_head_weight, p_head_bias)",
    ]
    assert text(calls[1].module.graph) == golden("""
        %linear: f32[3, 4] = input
        %p_blocks_0_fc1_weight: f32[8, 4] = input
        %p_blocks_0_fc2_weight: f32[4, 8] = input
        %linear_1: f32[3, 8] = linear(%linear, %p_blocks_0_fc1_weight)
        %linear_2: f32[3, 4] = linear(%linear_1, %p_blocks_0_fc2_weight)
        %add: f32[3, 4] = add(%linear, %linear_2)
        return (%add)
    """)


def test_equal_blocks_share_a_graph_and_others_do_not():
    _, (_, first, second, third, _) = outline(Stack((8, 8, 6), (0, 1, 2)), torch.randn(3, 2))
    assert first.module is second.module
    assert first.key == second.key != third.key
    assert first.module is not third.module


def test_a_block_that_runs_twice_has_a_number_and_shares_its_graph():
    model = seeded(Stack((8, 8), (0, 1, 0)))
    captured, calls = outline(model, torch.randn(3, 2))
    assert names(calls) == ["(head)", "blocks.0", "blocks.1", "blocks.0#2", "(tail)"]
    assert calls[1].module is calls[3].module
    x = torch.randn(3, 2)
    torch.testing.assert_close(execute(captured, calls, model, x=x), [model(x).detach()])


def test_a_model_without_a_list_is_one_call():
    _, calls = outline(Block(), torch.randn(3, 4))
    assert names(calls) == ["(model)"]
    _, calls = outline(nn.ModuleDict({"net": nn.Sequential(Block(), Block())})["net"][0], torch.randn(3, 4))
    assert names(calls) == ["(model)"]


class Sequence(nn.Module):
    """Its layers are the elements of a Sequential, which is called as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(), Block())

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(h)


def test_the_layers_of_a_sequential_are_blocks():
    _, calls = outline(Sequence(), torch.randn(3, 4))
    assert names(calls) == ["layers.0", "layers.1"]
    assert calls[0].module is calls[1].module


class Nested(nn.Module):
    """Blocks that hold a list of their own; the output borrows the first block's norm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Sublist() for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h) * 2
        return self.blocks[0].norm(h)


class Sublist(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, h: Tensor) -> Tensor:
        h = self.norm(h)
        for layer in self.layers:
            h = layer(h)
        return h


def test_outermost_lists_first_and_what_only_borrows_from_a_block_stays_outside():
    model = seeded(Nested())
    captured, calls = outline(model, torch.randn(3, 4))
    assert names(calls) == ["blocks.0", "blocks.1", "(tail)"]
    assert [node.name for node in calls[2].module.graph.nodes if node.op == "call_function"] == [
        "mul_1",
        "layer_norm_2",
    ]
    h = torch.randn(3, 4)
    torch.testing.assert_close(execute(captured, calls, model, h=h), [model(h).detach()])


def test_work_between_two_blocks_joins_the_block_after_it():
    _, (first, second, _) = outline(Nested(), torch.randn(3, 4))
    assert "mul" not in text(first.module.graph)
    assert "mul(%" in text(second.module.graph)
    assert first.key != second.key


class Constants(nn.Module):
    """The blocks read a tensor that forward makes, and an output is an input handed through."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        table = torch.tensor([1.0, 2.0, 3.0, 4.0])
        for block in self.blocks:
            h = block(h + table)
        return h, table


def test_constants_are_inputs_of_the_calls_that_read_them():
    model = seeded(Constants())
    captured, calls = outline(model, torch.randn(3, 4))
    h = torch.randn(3, 4)
    torch.testing.assert_close(execute(captured, calls, model, h=h), [value.detach() for value in model(h)])
