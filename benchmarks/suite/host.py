"""Where the host's time of a step goes, on a denoiser whose arithmetic takes next to none.

Compiled pieces are replaced by functions that do nothing, so that what remains is guards, finding the step and passing
tensors around. On a GPU the call itself is timed instead: it returns as soon as everything is launched.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import fx, nn

import soda_compile
from benchmarks.suite.configs import Config, _dit
from benchmarks.suite.masks import computed
from benchmarks.suite.methods import SPARSE
from benchmarks.suite.models import make_inputs, make_model
from benchmarks.suite.plans import plan_for
from soda_compile.backend.entry import soda
from soda_compile.compiler import lowering
from soda_compile.packages import loading
from soda_compile.torch_internals import inductor

TINY = Config(
    "host", "DiT of 28 layers, 64 wide, 16 tokens", "dit", "DiTTransformer2DModel", _dit(8, 2, 32), 2, (4, 8, 8)
)
TRAJECTORIES = 30
Compiled = Callable[..., Any]


def profile_host(device: str, steps: int) -> dict[str, Any]:
    """Microseconds of each part, for a computed step and for one that reuses everything."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = make_model(TINY, device, dtype)
    calls = make_inputs(TINY, device, dtype, steps)
    mask = computed(steps, SPARSE)
    plan = plan_for(soda_compile.inspect(model, **calls[0]), mask)
    skip = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
    few_guards = _median_us(_compiled(model, _returns_the_same, skip), model, calls, mask)
    guards = _median_us(_compiled(model, _returns_the_same), model, calls, mask)
    whole = _median_us(_compiled(model, _backend(plan, device)), model, calls, mask)
    if device == "cuda":
        rest = {kind: whole[kind] - guards[kind] for kind in whole}
        parts = {"Dynamo: guards and call": guards, "finding and launching the step": rest, "in all": whole}
    else:
        run = _run_us(model, plan, calls, mask)
        in_all = {kind: guards[kind] + run[kind] for kind in run}
        pieces = {kind: max(0.0, whole[kind] - in_all[kind]) for kind in whole}
        parts = {
            "Dynamo: guards and call": guards,
            "finding the step and passing tensors": run,
            "in all": in_all,
            "Inductor's code, its arithmetic included": pieces,
        }
        parts["in all, as a package"] = _package_us(model, plan, calls, mask)
    parts["Dynamo, if guards on modules are skipped (unsafe, opt-in)"] = few_guards
    kinds = ("computed step", "step that reuses everything")
    steps_of = {kind: {name: part[kind] for name, part in parts.items()} for kind in kinds}
    return {"title": TINY.title, "trajectories": TRAJECTORIES, "steps": steps_of}


def _compiled(model: nn.Module, backend: Compiled, options: dict[str, Any] | None = None) -> Compiled:
    torch._dynamo.reset()
    compiled: Compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False, options=options)
    return compiled


def _backend(plan: soda_compile.Plan, device: str) -> Compiled:
    mode = "reduce-overhead" if device == "cuda" else None
    return lambda module, inputs: soda(module, inputs, options={"plan": plan}, mode=mode)


def _returns_the_same(module: fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Compiled:
    """A backend that computes once, and then returns what it has."""
    outputs: list[Any] = []

    def call(*arguments: Any) -> Any:
        if not outputs:
            outputs.append(module.forward(*arguments))
        return outputs[0]

    return call


def _run_us(
    model: nn.Module, plan: soda_compile.Plan, calls: list[dict[str, Any]], mask: tuple[bool, ...]
) -> dict[str, float]:
    """The planned denoiser alone, as Dynamo calls it, with pieces that do nothing."""
    built: list[tuple[Compiled, Sequence[Any]]] = []

    def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        planned = soda(module, inputs, options={"plan": plan})

        def call(*arguments: Any) -> Any:
            built.append((planned, arguments))
            return planned(*arguments)

        return call

    with mock.patch.object(lowering, "inductor_compile", does_nothing), torch.no_grad():
        compiled = _compiled(model, backend)
        with soda_compile.trajectory(model):
            compiled(**calls[0])
    planned, arguments = built[0]
    return _median_us(lambda **_: planned(*arguments), model, calls, mask)


def _package_us(
    model: nn.Module, plan: soda_compile.Plan, calls: list[dict[str, Any]], mask: tuple[bool, ...]
) -> dict[str, float]:
    """A call of the same denoiser as a package, whose code runs once and then returns what it has."""
    opened = inductor.open_subgraph

    def open_once(package: str, name: str) -> Compiled:
        run, kept = opened(package, name), list[Any]()

        def call(*inputs: torch.Tensor) -> list[torch.Tensor]:
            kept.extend(run(*inputs) if not kept else ())
            return kept

        return call

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(loading, "open_subgraph", open_once):
        path = soda_compile.export(model, calls[0], plan=plan, path=f"{folder}/host.soda.pt2")
        denoiser = soda_compile.load(path)
    return _median_us(denoiser, denoiser, calls, mask)


def does_nothing(module: fx.GraphModule, options: dict[str, Any]) -> Compiled:
    """Stands in for a compiled graph: returns tensors of the right layout, always the same."""
    [output] = module.graph.find_nodes(op="output")
    values = [node.meta["val"] if isinstance(node, fx.Node) else node for node in output.args[0]]
    results = [
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        if isinstance(value, torch.Tensor)
        else value
        for value in values
    ]
    return lambda *_: results


def _median_us(
    call: Compiled, model: nn.Module, calls: list[dict[str, Any]], mask: tuple[bool, ...]
) -> dict[str, float]:
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(TRAJECTORIES + 2):
        with torch.no_grad(), soda_compile.trajectory(model):
            for inputs, is_computed in zip(calls, mask, strict=True):
                if inputs["hidden_states"].is_cuda:
                    torch.cuda.synchronize()
                started = time.perf_counter()
                call(**inputs)
                taken = time.perf_counter() - started
                if number > 1:
                    times[is_computed].append(taken * 1e6)
    return {
        "computed step": statistics.median(times[True]),
        "step that reuses everything": statistics.median(times[False]),
    }
