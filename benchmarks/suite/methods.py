"""The rows of the table: every method, by name, and how it is applied to a denoiser."""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.suite.masks import computed
from benchmarks.suite.runner import Runner

Group = Literal["eager", "torch.compile", "soda", "peer"]
Inputs = dict[str, Any]
SPARSE = 4
"""The interval of the mask that peers follow too."""


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: What the table calls it.
        group: Whose it is.
        build: Applies it to a denoiser: model, inputs of a call, number of steps.
        interval: Of the mask; None where everything is computed.
        mode: Of ``torch.compile``.
        compiled: Whether anything is compiled.
        cold: Whether it starts with an empty compiler cache of its own, and is started a second time to see what that
            cache brings. The others share one.
        same_mask: Whether it means to leave out all that the mask leaves out.
    """

    name: str
    group: Group
    build: Callable[[nn.Module, Inputs, int], Runner]
    interval: int | None = None
    mode: str | None = None
    compiled: bool = True
    cold: bool = False
    same_mask: bool = True


def methods(device: str) -> dict[str, Method]:
    """All rows for a device, by name. CUDA graphs (``reduce-overhead``) are the default mode anywhere else."""
    modes = (None, "reduce-overhead") if device == "cuda" else (None,)
    rows = [Method("eager", "eager", lambda model, inputs, steps: Runner(model), compiled=False)]
    for mode in modes:
        for dynamic in (False, True):
            plain = functools.partial(torch.compile, fullgraph=True, dynamic=dynamic, mode=mode)
            title = "torch.compile, dynamic" if dynamic else "torch.compile"
            build = functools.partial(_compiled, plain)
            rows.append(Method(_named(title, mode), "torch.compile", build, mode=mode, cold=not dynamic))
    for mode in modes:
        rows.append(_soda("everything", None, "reuse", mode, cold=True))
        rows.append(_soda("reuse", 2, "reuse", mode))
        rows.append(_soda("reuse", SPARSE, "reuse", mode))
        rows.append(_soda("reuse", SPARSE, "reuse", mode, dynamic=True))
        rows.append(_soda("reuse", 2 * SPARSE, "reuse", mode))
        rows.append(_soda("forecast", SPARSE, "forecast", mode, cold=True))
        rows.append(_soda("prune half", SPARSE, "prune", mode))
        rows.append(_soda("everything", None, "reuse", mode, cold=True, ahead=True))
        rows.append(_soda("reuse", SPARSE, "reuse", mode, ahead=True))
        rows.append(_soda("reuse", 2 * SPARSE, "reuse", mode, ahead=True))
        rows.append(_soda("forecast", SPARSE, "forecast", mode, cold=True, ahead=True))
    rows += [*_cache_dit(device), *_diffusers()]
    return {row.name: row for row in rows}


def _named(name: str, mode: str | None) -> str:
    return f"{name}, {mode}" if mode else name


def _compiled(compile: Callable[..., Any], model: nn.Module, inputs: Inputs, steps: int) -> Runner:
    return Runner(model, compile=compile)


def _soda(
    name: str,
    interval: int | None,
    kind: str,
    mode: str | None,
    cold: bool = False,
    ahead: bool = False,
    dynamic: bool = False,
) -> Method:
    def build(model: nn.Module, inputs: Inputs, steps: int) -> Runner:
        from benchmarks.suite.ours import planned

        return planned(model, inputs, computed(steps, interval), kind, mode, ahead, dynamic)

    title = "soda ahead" if ahead else "soda dynamic" if dynamic else "soda"
    title += f", {name}" if interval is None else f", {name}, interval {interval}"
    return Method(_named(title, mode), "soda", build, interval, mode, cold=cold, same_mask=kind != "prune")


def _cache_dit(device: str) -> list[Method]:
    def build(forecast: bool, how: str | None, model: nn.Module, inputs: Inputs, steps: int) -> Runner:
        if importlib.util.find_spec("cache_dit") is None:
            raise NotImplementedError("cache-dit is not installed; pip install soda-compile[bench]")
        from benchmarks.suite import cache_dit_peer as peer

        ways: dict[str, Callable[[nn.Module], Any]] = {
            "compiled": peer.whole,
            "compiled by block": peer.blocks,
            "compiled, reduce-overhead": functools.partial(peer.whole, cuda_graphs=True),
        }
        runner = peer.dual_block_cache(model, computed(steps, SPARSE), forecast)
        return replace(runner, compile=ways[how]) if how else runner

    rows = []
    for forecast in (False, True):
        name = "cache-dit, TaylorSeer" if forecast else "cache-dit, DBCache"
        hows = [None, "compiled", *([] if forecast else ["compiled by block"])]
        hows += ["compiled, reduce-overhead"] if device == "cuda" and not forecast else []
        rows += [_peer(name, how, functools.partial(build, forecast, how)) for how in hows]
    return rows


def _diffusers() -> list[Method]:
    def build(name: str, how: str | None, model: nn.Module, inputs: Inputs, steps: int) -> Runner:
        from benchmarks.suite.peers import PEERS, compiled

        runner = PEERS[name](model, computed(steps, SPARSE), SPARSE)
        # PAB counts its calls, so that every step is compiled anew whatever the limit.
        way = torch.compile if name == "PAB" else compiled
        return replace(runner, compile=way) if how else runner

    names = ("FirstBlockCache", "MagCache", "TaylorSeer", "TaylorSeer lite", "PAB")
    return [
        _peer(f"diffusers, {name}", how, functools.partial(build, name, how))
        for name in names
        for how in (None, "compiled")
    ]


def _peer(name: str, how: str | None, build: Callable[[nn.Module, Inputs, int], Runner]) -> Method:
    title = f"{name}, {how or 'eager'}"
    return Method(title, "peer", build, SPARSE, compiled=how is not None, same_mask="PAB" not in name)
