"""Tensor parallelism, and other ways to spread a model: each works, or is refused at once with the way out."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from distributed_checks import assert_close, error_of, everyones, relative, sent_in
from random_plans import random_plan
from torch import Tensor, nn
from torch.nn import functional as F

import soda_compile
from soda_compile import DistributedError, OptionError, Plan
from soda_compile.backend import soda
from soda_compile.learning import soda as learning_soda
from soda_compile.plans.actions import COMPUTE, FORECAST1, REUSE

WIDTH, HEADS, TOKENS, STEPS = 16, 4, 6, 6
REGIONS = tuple(f"blocks.{layer}.{name}" for layer in range(2) for name in ("attention", "mlp"))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = (
            project(h).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(h)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp = Attention(), Mlp()

    def forward(self, h: Tensor, gate: Tensor) -> Tensor:
        h = h + gate * self.attention(self.norm1(h))
        return h + gate * self.mlp(self.norm2(h))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.last = nn.ModuleList(Block() for _ in range(2)), nn.Linear(WIDTH, WIDTH)
        self.eval()

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        gate = 1 + torch.cos(timestep / 1000)[:, None, None]
        for block in self.blocks:
            x = block(x, gate)
        return self.last(x)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    columns = ("attention.q", "attention.k", "attention.v", "mlp.up")
    plan: dict[str, Any] = {name: ColwiseParallel() for name in columns}
    plan |= {name: RowwiseParallel() for name in ("attention.out", "mlp.down")}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks:  # type: ignore[union-attr]
        parallelize_module(block, mesh, plan)
    return model


def inputs(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    walk = torch.randn(STEPS, 2, TOKENS, WIDTH, generator=generator).mul(0.5).cumsum(0)
    return [(x, torch.full((2,), 900.0 - 150 * step)) for step, x in enumerate(walk)]


def generate(model: nn.Module, run: Callable[..., Any], seed: int = 0) -> Tensor:
    with torch.no_grad(), soda_compile.trajectory(model):
        return torch.stack([run(*call) for call in inputs(seed)])


def compiled(model: Callable[..., Any], plan: Plan, **options: Any) -> Callable[..., Any]:
    return torch.compile(model, backend=soda, options={"plan": plan}, dynamic=False, **options)


def plan_of(row: str) -> Plan:
    actions = tuple({"C": COMPUTE, "r": REUSE, "1": FORECAST1}[symbol] for symbol in row)
    return Plan("", REGIONS, (actions,) * len(REGIONS))


def check_tensor_parallel_gives_what_one_process_gives() -> None:
    alone, shared = Denoiser(), sharded(Denoiser())
    original = generate(alone, alone)
    assert relative(generate(shared, compiled(shared, plan_of("C" * STEPS), fullgraph=True)), original) < 1e-6
    plan = random_plan(3, REGIONS, STEPS)
    by_plan = generate(alone, compiled(alone, plan))
    assert relative(by_plan, original) > 1e-3
    assert relative(generate(shared, compiled(shared, plan, fullgraph=True)), by_plan) < 1e-6
    (counted,) = soda_compile.stats(shared).values()
    assert counted["calls"] == 2 * STEPS
    assert not counted["misses"]


def check_reused_steps_of_tensor_parallel_send_nothing() -> None:
    shared = sharded(Denoiser())
    run = compiled(shared, plan_of("CCrC1r"), fullgraph=True)
    generate(shared, run)  # compiles
    with torch.no_grad(), soda_compile.trajectory(shared):
        sent = [sent_in(functools.partial(run, *call)) for call in inputs()]
    assert [counts.total() for counts in sent] == [4, 4, 0, 4, 0, 0]
    assert sent[0] == {"all_reduce": 4}


def check_tensor_parallel_is_calibrated() -> None:
    def one(model: nn.Module, **options: Any) -> soda_compile.Sensitivity:
        def run(seed: int) -> None:
            for call in inputs(seed):
                model(*call)

        return soda_compile.calibrate(model, run, generations=2, max_interval=2, **options)

    whole, shared = one(Denoiser()), one(sharded(Denoiser()), model_group=dist.group.WORLD)
    assert shared.info.regions == whole.info.regions == REGIONS
    assert_close(shared, whole)
    plan = soda_compile.plan(shared, speedup=1.5, process_group=dist.group.WORLD)
    other = soda_compile.plan(whole, speedup=1.5)
    assert plan.actions == other.actions
    # The fingerprint is of whole weights on one side and of shards on the other; names of regions are compared.
    alone, model = Denoiser(), sharded(Denoiser())
    assert relative(generate(model, compiled(model, other)), generate(alone, compiled(alone, other))) < 1e-6
    assert "calibrate it with model_group=" in error_of(OptionError, lambda: one(sharded(Denoiser())))


def check_tensor_parallel_ranks_with_different_plans_refuse_together() -> None:
    shared = sharded(Denoiser())
    plan = plan_of(("CCrC1r", "CCrCrr")[dist.get_rank()])
    message = error_of(DistributedError, lambda: generate(shared, compiled(shared, plan)))
    assert set(everyones(message)) == {message}


def check_inductor_compiles_what_is_sent() -> None:
    alone, shared = Denoiser(), sharded(Denoiser())
    plan = plan_of("CrC1Cr")
    by_plan = generate(alone, compiled(alone, plan))
    run = torch.compile(shared, backend=soda, options={"plan": plan, "lowering": "inductor"}, dynamic=False)
    assert relative(generate(shared, run), by_plan) < 1e-6


def check_a_goal_instead_of_a_plan_is_refused() -> None:
    shared = sharded(Denoiser())
    run = torch.compile(shared, backend=learning_soda, options={"speedup": 1.5}, dynamic=False)
    assert "several processes share this model" in error_of(OptionError, lambda: generate(shared, run))


def check_data_parallel_wrapper() -> None:
    from torch.nn.parallel import DistributedDataParallel

    model = Denoiser()
    wrapped = DistributedDataParallel(model)
    plan = random_plan(4, REGIONS, STEPS)
    alone = Denoiser()
    by_plan = generate(alone, compiled(alone, plan))
    assert relative(generate(model, compiled(wrapped.module, plan, fullgraph=True)), by_plan) < 1e-6

    def run(seed: int) -> None:
        for call in inputs(seed):
            wrapped(*call)

    sensitivity = soda_compile.calibrate(wrapped, run, generations=2, max_interval=2, process_group=dist.group.WORLD)
    assert sensitivity.info.regions == REGIONS
    assert sensitivity.info.seeds == (0, 1)


def check_fully_sharded_root() -> None:
    from torch.distributed.fsdp import fully_shard

    model, alone = Denoiser(), Denoiser()
    fully_shard(model)
    plan = random_plan(5, REGIONS, STEPS)
    assert relative(generate(model, compiled(model, plan)), generate(alone, compiled(alone, plan))) < 1e-6


def check_fully_sharded_blocks_are_refused() -> None:
    from torch.distributed.fsdp import fully_shard

    model = Denoiser()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    message = error_of(OptionError, lambda: soda_compile.calibrate(model, lambda seed: model(*inputs()[0])))
    assert "blocks.0" in message
    assert "fully_shard" in message


def check_fully_sharded_blocks_follow_plans_of_their_own() -> None:
    """The hooks that fetch weights stay outside of the graph of a block's forward."""
    from torch.distributed.fsdp import fully_shard

    plan = plan_of("CCrC1r")
    plan = Plan("", ("(model).attention", "(model).mlp"), plan.actions[:2])

    def by_blocks(model: nn.Module) -> Tensor:
        for block in model.blocks:  # type: ignore[union-attr]
            block.forward = compiled(block.forward, plan)
        return torch.stack([generate(model, model) for _ in range(2)])

    model, alone = Denoiser(), Denoiser()
    original = torch.stack([generate(alone, alone)] * 2)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    by_plan = by_blocks(alone)
    assert relative(by_plan, original) > 1e-3
    assert relative(by_blocks(model), by_plan) < 1e-6


def check_guidance_on_two_ranks() -> None:
    """Conditional and unconditional calls on a rank each, by one plan for both."""
    rank, model = dist.get_rank(), Denoiser()
    plan = Plan(**{**vars(random_plan(6, REGIONS, STEPS)), "calls_per_step": 2})
    alone = Denoiser()
    run, both = compiled(model, plan), compiled(alone, plan)

    def guided(conditional: Tensor, unconditional: Tensor) -> Tensor:
        return unconditional + 3 * (conditional - unconditional)

    steps = []
    with torch.no_grad(), soda_compile.trajectory(model, manual=True) as generation:
        for x, t in inputs():
            parts = [torch.empty_like(x) for _ in range(2)]
            dist.all_gather(parts, run(x if rank == 0 else -x, t).contiguous())
            steps.append(guided(*parts))
            generation.advance()
    with torch.no_grad(), soda_compile.trajectory(alone):
        expected = [guided(both(x, t), both(-x, t)) for x, t in inputs()]
    assert relative(torch.stack(steps), torch.stack(expected)) < 1e-6


LATER = [
    "check_tensor_parallel_is_calibrated",
    "check_fully_sharded_blocks_follow_plans_of_their_own",
    "check_tensor_parallel_ranks_with_different_plans_refuse_together",
    "check_a_goal_instead_of_a_plan_is_refused",
    "check_inductor_compiles_what_is_sent",
    "check_fully_sharded_root",
]
