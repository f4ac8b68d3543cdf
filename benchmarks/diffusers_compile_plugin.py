"""A pytest plugin under which ``torch.compile`` without a backend is this project's, with a plan for what it is given.

``pytest -p diffusers_compile_plugin --soda-mode accelerate --soda-report out.json``, with this folder on the path.

What is compiled, a model or a block of it, is inspected when it is first called, planned, and only then compiled, with
the arguments that the test gave. Each call is compared with the same call in eager mode: the tests call with equal
inputs, so a reused value is the computed one, and every plan must give the same.
"""

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import soda_compile
from soda_compile.plans.actions import COMPUTE, REUSE
from soda_compile.plans.plan import Plan

MODES = ("inductor", "soda", "compute", "accelerate")
STEPS = 4
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the largest value; other dtypes are narrower
NARROW = 5e-2
MIXIN = "TorchCompileTesterMixin"

compile_plainly = torch.compile


def plan_for(model: nn.Module, mode: str, args: Any, kwargs: Any) -> Plan | None:
    """The plan of a mode for a model; None where there is nothing in it to plan."""
    structure = soda_compile.inspect(model, *args, **kwargs)
    names = structure.region_names
    if mode == "soda" or not names:
        return None
    row = (COMPUTE, REUSE if mode == "accelerate" else COMPUTE) * (STEPS // 2)
    return Plan(structure.fingerprint, names, (row,) * len(names))


class Compiled:
    """What ``torch.compile`` returns: compiled with the backend at the first call."""

    def __init__(self, target: Any, mode: str, arguments: dict[str, Any]) -> None:
        self.target, self.mode, self.arguments = target, mode, arguments
        self.model: nn.Module = target if isinstance(target, nn.Module) else target.__self__
        self.planned = False
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled is None:
            plan = None if self.mode == "soda" else plan_for(self.model, self.mode, args, kwargs)
            self.planned = plan is not None
            arguments = dict(self.arguments)
            # torch.compile takes a mode or options, so with a plan the mode is one of these.
            options = {"plan": plan, "mode": arguments.pop("mode", None)} if plan else None
            self.compiled = compile_plainly(self.target, backend="soda", options=options, **arguments)
        found = self.compiled(*args, **kwargs)
        with torch.no_grad():
            require_close(found, self.target(*args, **kwargs))
        return found


def require_close(found: Any, wanted: Any) -> None:
    for mine, theirs in zip(_tensors(found), _tensors(wanted), strict=True):
        bound = CLOSE.get(theirs.dtype, NARROW) * theirs.abs().max().item()
        difference = (mine - theirs).abs().max().item()
        assert difference <= bound, f"differs from eager mode by {difference:g}, more than {bound:g}"


def _tensors(value: Any) -> list[torch.Tensor]:
    leaves = tree_leaves(dict(value) if hasattr(value, "to_tuple") else value)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.numel()]


class Plugin:
    """Replaces ``torch.compile`` and writes what came of each test."""

    def __init__(self, mode: str, report: Path) -> None:
        self.mode, self.report = mode, report
        self.compiled: list[Compiled] = []
        self.results: dict[str, dict[str, Any]] = {}

    def compile(self, model: Any = None, *, backend: Any = "inductor", **arguments: Any) -> Any:
        """``torch.compile``, by the mode where no other backend is asked for."""
        owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
        if backend != "inductor" or not isinstance(owner, nn.Module):
            return compile_plainly(model, backend=backend, **arguments)
        self.compiled.append(Compiled(model, self.mode, arguments))
        return self.compiled[-1]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep the tests of the mixin that compile with ``torch.compile``."""
        mine = [item for item in items if _is_of_mixin(item) and "aot" not in item.name]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Run a test with ``torch.compile`` replaced."""
        self.compiled = []
        with pytest.MonkeyPatch.context() as patch:
            if self.mode != "inductor":
                patch.setattr(torch, "compile", self.compile)
            if not torch.accelerator.is_available():
                _without_streams(patch)
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Note the outcome, and how many calls followed a plan."""
        report: Any = yield
        if report.when == "call" or not report.passed:
            self.results[item.nodeid] = {
                "test": item.name,
                "class": item.getparent(pytest.Class).name,  # type: ignore[union-attr]
                "outcome": report.outcome,
                "seconds": round(report.duration, 1),
                "reason": _reason(report, call),
                **(self._followed() if report.when == "call" else {}),
            }
        return report  # type: ignore[no-any-return]

    def _followed(self) -> dict[str, Any]:
        if self.mode not in ("compute", "accelerate"):
            return {}
        calls, regions, misses = 0, Counter(), Counter()
        for model in dict.fromkeys(each.model for each in self.compiled):
            counted = soda_compile.stats(model)["model"]
            calls += counted["calls"]
            regions.update(counted["regions"])
            misses.update(counted["misses"])
        planned = sum(each.planned for each in self.compiled)
        return {"planned": planned, "calls": calls, "regions": dict(regions), "misses": dict(misses)}

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        self.report.write_text(json.dumps(list(self.results.values())))


def _is_of_mixin(item: pytest.Item) -> bool:
    owner = getattr(item, "cls", None)
    return owner is not None and MIXIN in [base.__name__ for base in owner.__mro__]


def _without_streams(patch: pytest.MonkeyPatch) -> None:
    """Let group offloading run where no device has streams."""
    from diffusers import ModelMixin

    enable = ModelMixin.enable_group_offload

    @wraps(enable)
    def without(self: Any, *args: Any, **kwargs: Any) -> Any:
        return enable(self, *args, **{**kwargs, "use_stream": False})

    assert "use_stream" in inspect.signature(enable).parameters
    patch.setattr(ModelMixin, "enable_group_offload", without)


def _reason(report: Any, call: pytest.CallInfo[None]) -> str:
    if report.skipped:
        return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if call.excinfo is None:
        return ""
    lines = [line for line in str(call.excinfo.value).strip().splitlines() if line.strip()]
    shown = lines[: 2 if lines and lines[0].endswith(":") else 1]  # "backend='inductor' raised:"
    return f"{call.excinfo.typename}: {' '.join(line.strip() for line in shown)}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this plugin."""
    parser.addoption("--soda-mode", choices=MODES, help="what torch.compile without a backend does")
    parser.addoption("--soda-report", type=Path, help="file to write outcomes to")


def pytest_configure(config: pytest.Config) -> None:
    """Start, if a mode is given."""
    if mode := config.getoption("--soda-mode"):
        config.pluginmanager.register(Plugin(mode, config.getoption("--soda-report")))
