"""Calibration on several ranks: what all measure together is what one process measures on all seeds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from distributed_checks import assert_close, error_of, everyones
from small_denoiser import TOKENS, Denoiser, calls
from torch import Tensor

import soda_compile
from soda_compile import DistributedError, OptionError, Sensitivity

SEEDS = range(3, 8)
SETTINGS: dict[str, Any] = {"max_interval": 2, "prune_scores": ["drift"]}
PRUNE_NOTHING: dict[str, Any] = {"max_interval": 2}


def generation(model: torch.nn.Module) -> Callable[[int], None]:
    def generate(seed: int) -> None:
        for call in calls(seed):
            model(*call)

    return generate


def measured(seeds: Any = SEEDS, **options: Any) -> Sensitivity:
    model = Denoiser()
    return soda_compile.calibrate(model, generation(model), seeds=seeds, **{**SETTINGS, **options})


def check_ranks_share_the_seeds_and_merge() -> None:
    whole = measured()
    shared = measured(process_group=dist.group.WORLD)
    assert_close(shared, whole)
    for other in everyones(shared):
        assert other.info == shared.info
        for key, table in shared.mean.items():
            np.testing.assert_array_equal(other.mean[key], table)


def check_resumed_on_all_ranks() -> None:
    first = measured(range(2))
    assert_close(measured(SEEDS, resume=first, process_group=dist.group.WORLD), soda_compile.merge(first, measured()))


def check_the_first_rank_plans() -> None:
    sensitivity = measured(process_group=dist.group.WORLD)
    notes = {"rank": str(dist.get_rank())}
    other = dataclasses.replace(sensitivity, info=dataclasses.replace(sensitivity.info, notes=notes))
    plan = soda_compile.plan(other, speedup=1.5, process_group=dist.group.WORLD)
    assert set(everyones(plan.digest)) == {plan.digest}
    assert plan == soda_compile.plan(sensitivity, speedup=1.5)
    # What cannot be planned on the first rank is an error on all of them.
    kind = soda_compile.PlanError if dist.get_rank() == 0 else DistributedError
    message = error_of(kind, lambda: soda_compile.plan(other, speedup=1e9, process_group=dist.group.WORLD))
    assert dist.get_rank() == 0 or "planning failed on rank 0: PlanError" in message


def check_a_rank_that_fails_is_an_error_on_all() -> None:
    def generate(seed: int) -> None:
        if seed == SEEDS[-1]:
            raise ValueError("no such prompt")
        generation(model)(seed)

    model = Denoiser()
    last = dist.get_rank() == dist.get_world_size() - 1
    message = error_of(
        ValueError if last else DistributedError,
        lambda: soda_compile.calibrate(model, generate, seeds=SEEDS, process_group=dist.group.WORLD, **SETTINGS),
    )
    assert last or message == "calibration failed on rank 1: ValueError: no such prompt"
    assert everyones(True) == [True, True]  # and the group can be used as before


def check_different_arguments_are_refused_before_any_work() -> None:
    rank = dist.get_rank()
    message = error_of(DistributedError, lambda: measured(max_interval=1 + rank, process_group=dist.group.WORLD))
    assert message == "calibration: max_interval must be the same on all ranks, but is 1 on rank 0, 2 on rank 1"


def check_fewer_seeds_than_ranks() -> None:
    message = error_of(OptionError, lambda: measured([1], process_group=dist.group.WORLD))
    assert message == "the generations, 1, are fewer than the 2 ranks; pass one for each"


class Half(Denoiser):
    """Half of the tokens: blocks are called on a part of what one process has, and mix all of them."""

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        gate = 1 + torch.cos(timestep / 1000).to(x.dtype)[:, None, None]
        for block in self.blocks:
            x = x + gate * block.mlp(x)
        return self.last(x)


def check_ranks_that_share_a_generation_add_up() -> None:
    """Token-wise blocks on half of the tokens each: only sums over both halves are errors of the whole."""
    rank, size = dist.get_rank(), dist.get_world_size()
    model = Half()

    def part(seed: int, of: int, number: int) -> None:
        width = TOKENS // of
        for x, t in calls(seed):
            model(x[:, number * width : (number + 1) * width], t)

    def one(generate: Callable[[int], None], **options: Any) -> Sensitivity:
        return soda_compile.calibrate(model, generate, seeds=range(2), **PRUNE_NOTHING, **options)

    whole = one(lambda seed: part(seed, 1, 0))
    alone = one(lambda seed: part(seed, size, rank))
    summed = one(lambda seed: part(seed, size, rank), model_group=dist.group.WORLD)
    assert_close(summed, whole)
    assert not np.allclose(
        alone.table("residual", "reuse"), whole.table("residual", "reuse"), rtol=1e-2, equal_nan=True
    )
    assert len({other.table("residual", "reuse").tobytes() for other in everyones(summed)}) == 1


def check_both_relations_exclude_each_other() -> None:
    both = {"process_group": dist.group.WORLD, "model_group": dist.group.WORLD}
    assert "a rank has one of these relations to another" in error_of(OptionError, lambda: measured(**both))


def check_what_is_no_group() -> None:
    assert "process_group is a str; pass a process group" in error_of(
        OptionError, lambda: measured(process_group="world")
    )
    alone = dist.new_group([0])
    if dist.get_rank():
        assert "rank 1 is not in that process group" in error_of(OptionError, lambda: measured(process_group=alone))
