"""The error of pruning a region at every rate, from one sort of its tokens (SODA's Ep, arXiv 2603.07057).

A pruned region computes the tokens of the highest score; the others keep the value of n steps ago. The change of the
whole output is then the sum of the changes of the kept tokens, so one sort by score and one cumulated sum give the
error at all rates. In a region of several token groups (joint attention) only the longest is pruned, as by
``prune(rate)``: the others, such as text, are few tokens, and planners leave them whole.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from soda_compile.ir.structure import Region
from soda_compile.measure.history import TokenGroup
from soda_compile.plans.actions import PRUNE_RATES


def longest_groups(region: Region, groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Return the token groups, of one for each cut, that an action's ``rate`` prunes; see ``wanted_tokens``."""
    longest = max(cut.shape[1] for cut in region.cuts)
    return [group for group, cut in zip(groups, region.cuts, strict=True) if cut.shape[1] == longest]


def pruned_products(
    groups: Iterable[TokenGroup], scores: tuple[str, ...], max_interval: int, draws: torch.Generator
) -> torch.Tensor:
    """Return inner products of the change that pruning leaves in a region's output.

    Args:
        groups: The groups to prune, with carries; each is ranked by itself, and the rate is the same for all.
        scores: Names of scores.
        max_interval: Older values are left out.
        draws: Where the random score comes from, a generator of the CPU.

    Returns:
        float64 [3, samples, scores, lags, rates]: squared norm of the change, its product with the present value, and
        its weighted squared norm.
    """
    parts = []
    for group in groups:
        recent = replace(group, past=group.past[:max_interval])
        products = token_products(recent)
        kept = [kept_sums(products, token_score(name, recent, draws)) for name in scores]
        parts.append(torch.stack(kept, dim=3).sum(4))  # [3, lags, samples, scores, rates], summed over the frames
    return torch.stack(parts).sum(0).movedim(1, 3)


def token_products(group: TokenGroup) -> torch.Tensor:
    """Return the terms of ``pruned_products`` for each token's change since a past step, [3, lags, samples, G, N]."""
    present = group.present.float()
    change = group.past.float() - present
    square = change.square()
    plain = square.sum(-1)
    weighted = plain if group.weight is None else (square * group.weight).sum(-1)
    return torch.stack([plain, (change * present).sum(-1), weighted]).double()


def token_score(name: str, group: TokenGroup, draws: torch.Generator) -> torch.Tensor:
    """Return scores of tokens, float32 [lags, samples, G, N]; those with the highest are computed."""
    shape = group.past.shape[:-1]
    assert group.carry is not None
    carry = group.carry.float()
    if name == "feature_mean":
        return carry.mean(-1).expand(shape)
    if name == "drift":
        assert group.past_carry is not None
        return (group.past_carry.float() - carry).square().sum(-1).sqrt()
    assert name == "random", name
    return torch.rand(shape, generator=draws).to(carry.device)


def kept_sums(values: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Return sums [3, ..., rates] of ``values`` [3, ..., N] over the ``floor(rate * N)`` tokens of lowest score."""
    order = score.argsort(dim=-1, stable=True)
    sums = values.gather(-1, order.expand_as(values)).cumsum(-1)
    sums = torch.nn.functional.pad(sums, (1, 0))  # no token kept
    return sums[..., [math.floor(rate * score.shape[-1]) for rate in PRUNE_RATES]]
