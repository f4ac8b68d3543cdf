"""Memory of kept values by policy, from plans alone.

Equal layers keep equally much, so that a denoiser with few layers of true width tells what all of them keep.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.cuda_codegen.capturing import structure_on_gpu
from benchmarks.cuda_codegen.models import SUBJECTS, WAN_720P
from benchmarks.cuda_codegen.programs import NoCode, constants_stood_in
from benchmarks.cuda_codegen.variants import STALE
from benchmarks.suite.configs import Config
from benchmarks.suite.models import make_model
from soda_compile.compiler.bind import prunable_regions
from soda_compile.compiler.lowering import Lowering
from soda_compile.compiler.program import build_program
from soda_compile.ir.structure import Structure
from soda_compile.plans.actions import COMPUTE, REUSE, Action, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.pruning import Pruning

Row = tuple[Action, ...]
LAYERS = 2
"""Layers of each kind that are captured."""
COUNTS = {"single_transformer_blocks": "num_single_layers"}
"""Which argument of a model counts the layers of a list, where it is not ``num_layers``."""


def slot_memory(name: str) -> list[dict[str, Any]]:
    """Rows of the table for a denoiser."""
    subject = WAN_720P if name == "wan720p" else SUBJECTS[name]
    counts = layer_counts(subject.config)
    structure = structure_on_gpu(_with_layers(subject.config, dict.fromkeys(counts, LAYERS)))
    model = make_model(subject.config, "meta", torch.bfloat16)
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return [
        {
            "name": name,
            "title": subject.config.title,
            "weight_bytes": weight_bytes,
            "policy": policy,
            "branches": subject.branches,
            "branch_bytes": kept,
            "bytes": kept * subject.branches,
        }
        for policy, row in policies(structure).items()
        if (kept := policy_bytes(structure, row, counts))
    ]


def layer_counts(config: Config) -> dict[str, int]:
    """Number of layers of the whole denoiser, by argument of its class."""
    own = {name: config.arguments.get(name) for name in ("num_layers", "num_single_layers")}
    return {name: count for name, count in own.items() if count is not None} or {"num_layers": 60}


def _with_layers(config: Config, layers: dict[str, int]) -> Config:
    return replace(config, arguments={**config.arguments, **layers})


def policies(structure: Structure) -> dict[str, Callable[[int], Row]]:
    """What plans do, by region."""
    kinds = [region.kind for region in structure.regions]
    made: dict[str, Callable[[int], Row]] = {
        str(action): lambda number, row=(*[COMPUTE] * history, action): row  # type: ignore[misc]
        for history, action in enumerate(STALE, 1)
    }
    for wanted in ("attention", "mlp"):
        if wanted in kinds:
            made[f"reuse of {wanted} alone"] = lambda number, wanted=wanted: (  # type: ignore[misc]
                (COMPUTE, REUSE) if kinds[number] == wanted else (COMPUTE, COMPUTE)
            )
    prunable = prunable_regions(structure)
    if any(prunable):
        made["prune half"] = lambda number: (COMPUTE, prune(0.5) if prunable[number] else REUSE)
    return made


def policy_bytes(structure: Structure, row: Callable[[int], Row], counts: dict[str, int]) -> int:
    """Memory of a policy in one branch of guidance, with all layers; the last of a kind may keep less than others."""
    layers = [tuple(name.split(".")[:2]) for name in structure.region_names]
    total = 0
    for kind, layer in dict.fromkeys(layers):
        count = counts[COUNTS.get(kind, "num_layers")]
        total += _layer_bytes(structure, row, layers, (kind, layer)) * (count - LAYERS + 1 if layer == "0" else 1)
    return total


def _layer_bytes(structure: Structure, row: Callable[[int], Row], layers: list[Any], layer: tuple[str, str]) -> int:
    rows = tuple(row(number) if mine == layer else (COMPUTE,) * len(row(number)) for number, mine in enumerate(layers))
    prunes = any(action.kind == "prune" for one in rows for action in one)
    plan = Plan("", structure.region_names, rows, pruning=Pruning("drift", share="block") if prunes else None)
    with constants_stood_in():
        program = build_program(structure, plan, Lowering(target=lambda subgraph: NoCode(subgraph.key)))
    return program.slot_memory_bytes
