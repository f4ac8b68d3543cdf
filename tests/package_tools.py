"""A small denoiser in the manner of diffusers, and packages whose subgraphs run in eager mode instead of compiled."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import soda_compile
from soda_compile.plans.actions import ACTIONS
from soda_compile.plans.plan import Plan
from soda_compile.torch_internals.tracing import SizeGuards

TOKENS, WIDTH, LAYERS = 4, 8, 2
TIMESTEPS = (900.0, 700.0, 400.0, 200.0)
STEPS = len(TIMESTEPS)
ROW = "CCr1"


@dataclass
class Output:
    sample: Tensor
    extra: Tensor | None = None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ff = nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, WIDTH))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return x + gate * self.ff(x)


class Denoiser(nn.Module):
    """Everything a call can have: nested, unused and optional arguments, buffers of both kinds, named results."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = {"in_channels": WIDTH, "shapes": (1, 2), "kind": torch.float32}
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.full((WIDTH,), 1.5))
        self.register_buffer("table", torch.linspace(0, 1, TOKENS)[:, None], persistent=False)
        self.offset = torch.full((1,), 0.25)
        self.eval()

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        added: dict[str, Any] | None = None,
        ignored: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        gate = 1 + torch.cos(timestep / 1000)[:, None, None]
        x = hidden_states * self.scale + self.table + self.offset
        if added is not None:
            x = x + added["bias"]
        for block in self.blocks:
            x = block(x, gate)
        x = self.out(x)
        return Output(x) if return_dict else (x,)


def inputs(step: int = 0, batch: int = 2, **changes: Any) -> dict[str, Any]:
    """Arguments of one call."""
    generator = torch.Generator().manual_seed(step)
    values: dict[str, Any] = {
        "hidden_states": torch.randn(batch, TOKENS, WIDTH, generator=generator),
        "timestep": torch.full((batch,), TIMESTEPS[step]),
        "added": {"bias": torch.randn(1, TOKENS, 1, generator=generator), "size": None},
        "ignored": torch.ones(3),
    }
    return {**values, **changes}


class Grid(Denoiser):
    """Takes [batch, width, height, columns] and makes height * columns tokens."""

    most = 99

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Any:  # type: ignore[override]
        batch, width, height, columns = hidden_states.shape
        gate = 1 + torch.cos(timestep / 1000)[:, None, None] * (columns / 4)
        x = hidden_states.reshape(batch, width, -1).transpose(1, 2)
        if height >= self.most:
            x = x.sin()
        for block in self.blocks:
            x = block(x, gate)
        return (self.out(x).transpose(1, 2).reshape(batch, width, height, columns),)


def grid_inputs(step: int, *sizes: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    values = torch.randn(sizes[0], WIDTH, *sizes[1:], generator=generator)
    return {"hidden_states": values, "timestep": torch.full((sizes[0],), TIMESTEPS[step])}


def trajectory(**changes: Any) -> list[dict[str, Any]]:
    return [inputs(step, **changes) for step in range(STEPS)]


def make_plan(row: str = ROW, **changes: Any) -> Plan:
    symbols = {action.symbol: action for action in ACTIONS}
    regions = tuple(f"blocks.{layer}.ff" for layer in range(LAYERS))
    settings = {"timesteps": TIMESTEPS, "timestep_input": "timestep", "scheduler": "Toy", **changes}
    return Plan("", regions, (tuple(symbols[symbol] for symbol in row),) * LAYERS, **settings)


PLAN = make_plan()

# A process that only serves: it must neither find diffusers nor start the compiler.
SERVE = """
import json, sys
sys.modules["diffusers"] = None
import torch
from safetensors.torch import load_file, save_file
import soda_compile
package, inputs, outputs, kind, *device = sys.argv[1:]
denoiser = soda_compile.load(package)
mapped = load_file(inputs, *device)  # a file maps them where torch would not
calls = {name: value.clone() for name, value in mapped.items()}
steps = 1 + max(int(name.split("/")[0]) for name in calls)
fixed = json.loads(kind)
results = {}
with torch.no_grad(), soda_compile.trajectory(denoiser):
    for step in range(steps):
        call = {name.split("/", 1)[1]: value for name, value in calls.items() if name.startswith(f"{step}/")}
        results[str(step)] = denoiser(**call, **fixed)[0]
save_file(results, outputs)
print(sorted(name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules))
"""


def generate(denoiser: Any, calls: list[dict[str, Any]]) -> Tensor:
    with torch.no_grad():
        return torch.stack([denoiser(**call, return_dict=False)[0] for call in calls])


def jit(model: nn.Module, plan: Plan = PLAN, **options: Any) -> Any:
    """The model by the plan, conditioned at each step, as packages do it: the same numbers to the last bit."""
    options = {"plan": plan, "conditioning": "step", **options}
    return torch.compile(model, backend="soda", options=options, fullgraph=True, dynamic=False)


Calls = list[dict[str, Any]]


def structure_plan(rows: list[str], structure: Any, **settings: Any) -> Plan:
    symbols = {action.symbol: action for action in ACTIONS}
    symbols["p"] = soda_compile.Action("prune", rate=0.5)
    actions = tuple(tuple(symbols[symbol] for symbol in row) for row in rows)
    return Plan(structure.fingerprint, structure.region_names, actions, **settings)


def tensors(calls: Calls) -> dict[str, Tensor]:
    named = ((f"{step}/{name}", value) for step, call in enumerate(calls) for name, value in call.items())
    return {name: value.clone().contiguous() for name, value in named if isinstance(value, Tensor)}


def outputs(denoiser: Callable[..., Any], calls: Calls) -> list[Tensor]:
    with torch.no_grad():
        return [denoiser(**call)[0] for call in calls]


@contextmanager
def eager_subgraphs() -> Any:
    """Packages exported inside hold no machine code: their subgraphs run as the graphs that they were made of."""
    modules: dict[str, Any] = {}

    def aot_compile(module: Any, sizes: Any, options: Any, folder: str) -> tuple[list[str], SizeGuards]:
        modules[Path(folder).name] = module
        Path(folder).mkdir()
        (Path(folder) / "subgraph.so").write_bytes(b"code of " + Path(folder).name.encode())
        return [str(Path(folder) / "subgraph.so")], SizeGuards((), {})

    def open_subgraph(package: str, name: str) -> Any:
        return lambda *values: list(modules[name](*values))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("soda_compile.packages.aot.aot_compile", aot_compile)
        patch.setattr("soda_compile.packages.loading.open_subgraph", open_subgraph)
        yield


def export(path: Path, model: nn.Module | None = None, **options: Any) -> Path:
    options = {"plan": PLAN, **options}
    example = options.pop("example", inputs())
    return soda_compile.export(model or Denoiser(), example, path=path, **options)
