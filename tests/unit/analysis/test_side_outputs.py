"""Blocks whose heavy work feeds the residual stream and a sum of skips beside it, as in WaveNet."""

import pytest
import torch
from eager_reference import EagerReference
from families import Region
from thorough import gated
from torch import Tensor, nn
from tracing import regions_of

import soda_compile
from soda_compile.ir.graphs import find_node
from soda_compile.ir.structure import Structure
from soda_compile.plans.actions import COMPUTE, REUSE
from soda_compile.plans.plan import Plan

WIDTH, LENGTH, BLOCKS, STEPS = 4, 6, 3, 3


class Block(nn.Module):
    """As in DiffWave: one product, in two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv1d(WIDTH, 2 * WIDTH, 3, padding=1)
        self.out = nn.Conv1d(WIDTH, 2 * WIDTH, 1)

    def activations(self, h: Tensor, c: Tensor) -> Tensor:
        gate, value = self.dilated(h + c).chunk(2, 1)
        return gate.sigmoid() * value.tanh()

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        residual, skip = self.out(self.activations(h, c)).chunk(2, 1)
        return (h + residual) / 2**0.5, skip


class TwoProducts(Block):
    """As in WaveNet: a product for each."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.skip = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        activations = self.activations(h, c)
        return h + self.out(activations), self.skip(activations)


class SameValue(TwoProducts):
    """What is added to the stream is the skip as well."""

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        out = self.out(self.activations(h, c))
        return h + out, out


class Scaled(Block):
    """The halves are scaled by gates, which stay computed."""

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        residual, skip = self.out(self.activations(h, c)).chunk(2, 1)
        return h + residual * c.sigmoid(), skip * c.tanh()


class Biased(TwoProducts):
    """A table is added to the skip: no stream, but a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, WIDTH, LENGTH))

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        h, skip = super().forward(h, c)
        return h, (skip + self.table).relu()


class Denoiser(nn.Module):
    """Sums the skips of its blocks as they come."""

    def __init__(self, block: type[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(BLOCKS))
        self.time, self.head = nn.Linear(1, WIDTH), nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c, total = self.time(t[:, None])[..., None], 0
        for block in self.blocks:
            x, skip = block(x, c)
            total = skip + total
        return self.head(total) + x.mean()


class Stacked(Denoiser):
    """Keeps the skips and sums them at the end, as CSDI does."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c, skips = self.time(t[:, None])[..., None], []
        for block in self.blocks:
            x, skip = block(x, c)
            skips.append(skip)
        return self.head(torch.stack(skips).sum(0) / BLOCKS**0.5) + x.mean()


class Joined(Denoiser):
    """One block after the other in one graph, whose skips are concatenated."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c, first, second = self.time(t[:, None])[..., None], self.blocks[0], self.blocks[1]
        x, one = first(x, c)
        x, two = second(x, c)
        return self.head(torch.cat([one, two], -1)) + x.mean()


BLOCK_KINDS = {
    Block: ("out",),
    TwoProducts: ("out", "skip"),
    SameValue: ("out",),
    Scaled: ("out",),
    Biased: ("out", "skip"),
}


pytestmark = pytest.mark.usefixtures("eager")


def build(make: type[Denoiser], block: type[Block]) -> nn.Module:
    torch.manual_seed(0)
    return make(block).eval().requires_grad_(False)


def inputs(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"x": torch.randn(2, WIDTH, LENGTH, generator=generator), "t": torch.full((2,), 1 - step / STEPS)}


def structure_of(model: nn.Module) -> Structure:
    return soda_compile.inspect(model, **inputs(0))


def cut_modules(structure: Structure, index: int) -> set[str]:
    """Paths of the modules that make the cuts of a region."""
    graphs = structure.for_each_region(lambda block, _: block.module.graph)
    paths = [find_node(graphs[index], cut.node).meta["paths"][-1] for cut in structure.regions[index].cuts]
    return {path.rpartition(".")[2] for path in paths}


styles = pytest.mark.parametrize("make", [Denoiser, Stacked, Joined])
kinds = pytest.mark.parametrize("block", gated(*list(BLOCK_KINDS)[::2], others=BLOCK_KINDS))


@styles
@kinds
def test_each_block_is_one_region_that_takes_all_its_work(make: type[Denoiser], block: type[Block]):
    structure = structure_of(build(make, block))
    blocks = 2 if make is Joined else BLOCKS
    assert len(structure.regions) == blocks
    work = [call.block.flops for call in structure.calls if call.block.regions]
    assert [region.flops for region in structure.regions] == work
    for index in range(blocks):
        assert cut_modules(structure, index) == set(BLOCK_KINDS[block])


@styles
@kinds
def test_reuse_keeps_both_outputs(make: type[Denoiser], block: type[Block]):
    model = build(make, block)
    names = structure_of(model).region_names
    plan = Plan(
        "", names, [[COMPUTE, REUSE, COMPUTE] if index % 2 else [COMPUTE, REUSE, REUSE] for index in range(len(names))]
    )
    expected = {name: Region(tuple(f"{name.split('.out')[0]}.{cut}" for cut in BLOCK_KINDS[block])) for name in names}
    calls = [inputs(step) for step in range(STEPS)]
    reference = EagerReference(model, expected, plan).run(calls)
    compiled = torch.compile(model, backend="soda", options={"plan": plan})
    for call, (value,) in zip(calls, reference, strict=True):
        torch.testing.assert_close(compiled(**call), value)


class Escapes(Block):
    """Another stream starts from the half that is not added to the first."""

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        residual, start = self.out(h).chunk(2, 1)
        return h + residual, start + self.dilated(start)[:, :WIDTH]


def test_work_that_another_stream_starts_from_stays():
    regions, notes = regions_of(Escapes(), torch.randn(2, WIDTH, LENGTH))
    assert [region.name for region in regions] == ["dilated"]
    assert [note.subject.partition(" ")[0] for note in notes] == ["out"]


class ReadElsewhere(nn.Module):
    """The keys of one stream are read by the attention of another."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.query, self.image = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        text = self.keys(c)
        both = torch.cat([text, self.query(h)], 1)
        seen = nn.functional.scaled_dot_product_attention(h, both, both)
        return c + self.out(nn.functional.scaled_dot_product_attention(c, text, text)), h + self.image(seen)


def test_work_that_another_branch_reads_stays():
    regions, _ = regions_of(ReadElsewhere(), torch.randn(2, 3, WIDTH), torch.randn(2, LENGTH, WIDTH))
    assert [len(region.cuts) for region in regions] == [1, 1]
    assert [len(region.branches) for region in regions] == [1, 1]


def test_sensitivity_counts_both_outputs():
    """The error of a branch without gates is that of its cut, in both halves."""
    model = build(Denoiser, Block)

    def generate(seed: int) -> None:
        for step in range(STEPS):
            model(**inputs(STEPS * seed + step))

    found = soda_compile.calibrate(model, generate, generations=1, max_interval=1)
    for index, block in enumerate(model.blocks):
        seen: list[Tensor] = []
        handle = block.out.register_forward_hook(lambda *values, seen=seen: seen.append(values[-1]))
        generate(0)
        handle.remove()
        error = (seen[0] - seen[1]).flatten(1).norm(dim=1) / seen[1].flatten(1).norm(dim=1)
        assert float(found.mean["relative.reuse"][1, index, 0]) == pytest.approx(float(error.mean()), rel=1e-3)
