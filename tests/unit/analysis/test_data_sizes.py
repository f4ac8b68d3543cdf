"""Sizes that depend on data: fine inside a block, refused on the way from one to the next."""

import re
from collections.abc import Callable

import pytest
import torch
from plain_models import REGIONS, WIDTH, Listed, Mlp, TimmBlock, inputs
from random_plans import random_plan
from thorough import gated
from torch import Tensor, nn
from torch.nn import functional as F

import soda_compile
from soda_compile.errors import CaptureError
from soda_compile.plans.plan import compute_all_plan

STEPS = 3


class Mixture(nn.Module):
    """A mixture of two experts, each of which is given the tokens that are its own."""

    def __init__(self, add: Callable[..., Tensor]) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 2), nn.ModuleList(Mlp() for _ in range(2))
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        chosen, out = self.gate(flat).argmax(-1), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            out = self.add(out, flat, chosen == number, expert)
        return out.reshape(x.shape)


def by_where(out: Tensor, flat: Tensor, mine: Tensor, expert: nn.Module) -> Tensor:
    (places,) = torch.where(mine)
    return out.index_add(0, places, expert(flat[places]))


def by_nonzero(out: Tensor, flat: Tensor, mine: Tensor, expert: nn.Module) -> Tensor:
    places = mine.nonzero().squeeze(-1)
    out[places] = expert(flat[places])
    return out


def by_mask(out: Tensor, flat: Tensor, mine: Tensor, expert: nn.Module) -> Tensor:
    out[mine] = expert(flat[mine])
    return out


def by_one_hot(out: Tensor, flat: Tensor, mine: Tensor, expert: nn.Module) -> Tensor:
    """As in transformers' Mixtral."""
    _, places = torch.where(F.one_hot(mine.long(), 2).permute(1, 0)[1:])
    return out.index_add_(0, places, expert(flat[None, places].reshape(-1, WIDTH)))


def mixture(add: Callable[..., Tensor]) -> nn.Module:
    torch.manual_seed(0)
    model = Listed(TimmBlock)
    for block in model.blocks:
        block.mlp = Mixture(add)
    return model.eval()


pytestmark = pytest.mark.usefixtures("eager")


@pytest.mark.parametrize("add", gated(by_nonzero, others=[by_where, by_mask, by_one_hot]))
def test_a_mixture_of_experts_is_planned(add: Callable[..., Tensor]) -> None:
    model, plan = mixture(add), random_plan(0, REGIONS, STEPS)
    denoiser = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True)
    with torch.no_grad():
        found = [denoiser(**inputs(step)) for step in range(STEPS)]
        torch.testing.assert_close(found[0], model(**inputs(0)))


def test_a_mixture_of_experts_is_calibrated() -> None:
    model = mixture(by_where)
    made = soda_compile.calibrate(
        model, lambda seed: [model(**inputs(step)) for step in range(STEPS)], generations=1, max_interval=2
    )
    assert made.info.regions == REGIONS


class Kept(Listed):
    """The blocks see the tokens alone that count."""

    def __init__(self) -> None:
        super().__init__(TimmBlock)

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        (places,) = torch.where(h[0, :, 0] > 0)
        kept = h[:, places]
        for block in self.blocks:
            kept = kept + block.mlp(block.norm1(kept))
        return h.index_copy(1, places, kept)


class Indexed(Kept):
    """Which tokens count is found before the blocks."""

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        (places,) = torch.where(h[0, :, 0] > 0)
        for block in self.blocks:
            h = block(h.index_add(1, places, block.mlp(block.norm1(h[:, places]))))
        return h


class Single(nn.Module):
    """One residual branch, in no block."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        kept = x[x[:, 0] > 0]
        return kept + self.mlp(kept)


@pytest.mark.parametrize(
    ("model", "arguments", "place"),
    gated(
        (Kept(), inputs(), "aten.linear.default in blocks.0.mlp.fc2"),
        (Single(), {"x": torch.randn(9, WIDTH)}, "aten.linear.default in mlp.fc2"),
        others=[(Indexed(), inputs(), "aten.where.default in the forward of the model")],
    ),
)
def test_a_stream_of_such_a_size_is_refused(model: nn.Module, arguments: dict[str, Tensor], place: str) -> None:
    message = rf"depends on data: aten\.\w+\.\w+ in .* gives it, and {re.escape(place)} is part.*inside one block"
    with pytest.raises(CaptureError, match=message):
        soda_compile.inspect(model.eval(), **arguments)
    torch._dynamo.reset()
    options = {"plan": compute_all_plan(["blocks.0.mlp"], 2)}
    with torch.no_grad(), pytest.raises(CaptureError, match=message):
        torch.compile(model.eval(), backend="soda", options=options, fullgraph=True)(**arguments)


class Listing(Listed):
    """Asks on the host, behind the blocks, which tokens count."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = super().forward(x, t)
        places = (out[0, :, 0] > 0).nonzero().flatten().tolist()
        return out[:, places] if places else out


def test_what_dynamo_cannot_guard_on_is_captured_in_several_graphs() -> None:
    assert soda_compile.inspect(Listing(TimmBlock).eval(), **inputs()).region_names == REGIONS
