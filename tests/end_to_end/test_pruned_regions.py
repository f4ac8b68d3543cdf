"""Every region of ten families: the pruned branch, with any index, is the full branch at that index.

Run this file to print the table of docs/pruning.md.
"""

import pytest
import torch

pytest.importorskip("diffusers")

from models.catalogue import DENOISERS
from pruned_branches import Branch, pruned_branches
from tracing import trace

from soda_compile.compiler.analyse import analyse

CLASSES = (
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "CogVideoXTransformer3DModel",
    "WanTransformer3DModel",
    "LatteTransformer3DModel",
    "QwenImageTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
)
MERGED = "token groups are put together here"  # those of a joint feed-forward, before its first linear


def branches(name: str) -> list[Branch]:
    model, inputs = DENOISERS[name].build()
    return list(pruned_branches(analyse(trace(model, **inputs))))


@pytest.mark.parametrize("name", CLASSES)
def test_a_pruned_branch_is_the_full_branch_at_its_tokens(name: str) -> None:
    found = branches(name)
    assert found
    for branch in found:
        assert branch.prunable, branch
        assert branch.difference == pytest.approx(0, abs=1e-5), branch
        assert branch.kept < 0.9, branch
        assert all(MERGED in stop for stop in branch.stops), branch


def table() -> str:
    lines = ["| model | region | work kept at half of the tokens | why sinking stopped |", "|---|---|---|---|"]
    for name in CLASSES:
        for branch in branches(name):
            lines.append(f"| {name} | {branch.region} | {branch.kept:.0%} | {'; '.join(branch.stops) or '-'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(table())
