"""One value kept for all regions together, against hooks that add it to the input of the model's last norm."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")

from eager_reference import extrapolate, tensors
from families import FAMILIES, structure_of
from thorough import gated

import soda_compile
from soda_compile.plans.actions import COMPUTE, FORECAST1, FORECAST2, REUSE
from soda_compile.plans.fitted_weights import FittedWeights
from soda_compile.plans.plan import Plan

ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
ROW = (COMPUTE, REUSE, COMPUTE, FORECAST1, COMPUTE, FORECAST2, FORECAST2, REUSE)
STEPS = len(ROW)
LAST_NORM = {"cogvideox": "norm_final"}
"""What reads the residual stream after the last block; ``norm_out`` elsewhere."""

pytestmark = pytest.mark.usefixtures("eager_throughout")


class Reference:
    """Runs a model under one row of actions for all of its regions."""

    def __init__(self, name: str, model: nn.Module, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.last = model.get_submodule(LAST_NORM.get(name, "norm_out"))
        self.cuts = [model.get_submodule(path) for each in FAMILIES[name].regions.values() for path in each.cuts]
        self.added: list[tuple[int, Tensor]] = []

    def run(self, inputs: list[dict[str, Any]]) -> list[tuple[Tensor, ...]]:
        return [self._step(step, call) for step, call in enumerate(inputs)]

    def _step(self, step: int, call: Mapping[str, Any]) -> tuple[Tensor, ...]:
        action = self.plan.actions[0][step]
        with torch.no_grad():
            with self._without_regions(), self._stream() as bare:
                self.model(**call)
            if action == COMPUTE:
                with self._stream() as whole:
                    output = self.model(**call)
                self.added.append((step, whole[0] - bare[0]))
                return tensors(output)
            points = self.added[-1 - action.order :]
            fitted = [each.values for each in self.plan.weights if (each.step, each.order) == (step, action.order)]
            if fitted:
                added = sum(weight * value for weight, (_, value) in zip(fitted[0], points[::-1], strict=True))
            else:
                added = extrapolate(points, step)
            assert isinstance(added, Tensor)
            with self._without_regions(), self._stream(bare[0] + added):
                return tensors(self.model(**call))

    @contextmanager
    def _stream(self, instead: Tensor | None = None) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            seen.append(args[0].clone())
            return None if instead is None else (instead.to(args[0].dtype), *args[1:])

        handle = self.last.register_forward_pre_hook(hook)
        yield seen
        handle.remove()
        assert len(seen) == 1

    @contextmanager
    def _without_regions(self) -> Iterator[None]:
        with ExitStack() as hooks:
            for module in self.cuts:
                hooks.enter_context(module.register_forward_hook(lambda *args: torch.zeros_like(args[2])))
            yield


def plan_for(name: str, **fields: Any) -> Plan:
    structure = structure_of(name)
    rows = (ROW,) * len(structure.regions)
    return Plan(structure.fingerprint, structure.region_names, rows, slots="stack", **fields)


@pytest.mark.parametrize("name", gated("dit", "flux", "wan", others=FAMILIES))
def test_it_does_what_hooks_do(name: str) -> None:
    torch._dynamo.reset()
    model, inputs = FAMILIES[name].build(), list(FAMILIES[name].trajectory(STEPS))
    plan = plan_for(name, weights=(FittedWeights(6, 2, (1.5, -0.7, 0.3)), FittedWeights(7, 0, (0.9,))))
    compiled = torch.compile(model, backend="soda", options={"plan": plan}, fullgraph=True, dynamic=False)
    with torch.no_grad(), soda_compile.trajectory(model):
        outputs = [tensors(compiled(**call)) for call in inputs]
    torch.testing.assert_close(outputs, Reference(name, model, plan).run(inputs), **ROUNDING)
