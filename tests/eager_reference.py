"""Plans of compute, reuse, forecast and prune carried out by forward hooks in eager mode.

Written without the compiler, to check it: the model computes everything, and where the plan does not ask for a
computation the output of a region's cut modules is replaced by what the plan wants.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from families import Region
from torch import Tensor, nn

from soda_compile.plans.fitted_weights import OUTPUT
from soda_compile.plans.pruning import random_scores

if TYPE_CHECKING:
    from soda_compile.plans.actions import Action
    from soda_compile.plans.plan import Plan


@dataclass
class EagerReference:
    """Runs a model under a plan, one branch of guidance at a time.

    Branches (conditional and unconditional calls) each take an instance of their own. Hooks are on the model only
    inside `step`, so several instances may share one model and take turns.

    Attributes:
        model: The eager model.
        family_regions: Region name to its cut modules; ``path@2`` is the second call of a module in each step.
        pickers: Number of a region to the number of the region whose choice of tokens it takes; itself by default.
        plan: Actions per region and step. Regions that the plan does not name are computed at every step.
        keep: What becomes of a computed value that is kept.

    Raises:
        ValueError: If the plan names a region that the family does not have.
    """

    model: nn.Module
    family_regions: Mapping[str, Region]
    plan: "Plan"
    pickers: Mapping[int, int] = field(default_factory=dict)
    keep: Callable[[Tensor], Tensor] = lambda value: value
    _computed: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict, init=False)
    _newest: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        unknown = [name for name in self.plan.regions if name not in self.family_regions]
        if unknown:
            raise ValueError(f"the plan names regions {unknown}, the model has {list(self.family_regions)}")
        if self.plan.pruning is not None and self.plan.pruning.score != "random":
            raise ValueError("tokens can only be pruned at random here: hooks do not see the residual stream")

    def run(self, inputs_by_step: Sequence[Mapping[str, Any]]) -> list[tuple[Tensor, ...]]:
        """Runs a whole trajectory from a clean start and returns the output tensors of each step.

        Raises:
            ValueError: If there are not as many inputs as the plan has steps.
        """
        if len(inputs_by_step) != self.plan.steps:
            raise ValueError(f"the plan has {self.plan.steps} steps, got inputs for {len(inputs_by_step)}")
        outputs: list[tuple[Tensor, ...]] = []
        for step, inputs in enumerate(inputs_by_step):
            with self.step(step), torch.no_grad():
                output = self.model(**inputs)
            outputs.append(self._mixed(step, tensors(output), outputs))
        return outputs

    def _mixed(self, step: int, output: tuple[Tensor, ...], before: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """The output of a step, mixed with those of the anchors before it where the plan has weights for that."""
        for weights in [each.values for each in self.plan.weights if (each.step, each.order) == (step, OUTPUT)]:
            anchors = [anchor for anchor in self.plan.anchors if anchor < step]
            values = [output[0], *(before[anchor][0] for anchor in anchors[::-1])]
            mixed = sum(weight * value.float() for weight, value in zip(weights, values, strict=False))
            assert isinstance(mixed, Tensor)
            return (mixed.to(output[0].dtype),)
        return output

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Applies the actions of ``step`` to the one model call inside; the hooks go when the context ends.

        Step 0 starts a trajectory: it forgets what was recorded before.

        Raises:
            RuntimeError: If a cut module did not run exactly once inside.
            ValueError: If an action needs steps that this instance has not computed.
        """
        if step == 0:
            self._computed.clear()
        fired: list[str] = []
        with ExitStack() as hooks:
            for number, (name, actions) in enumerate(zip(self.plan.regions, self.plan.actions, strict=True)):
                for path in self.family_regions[name].cuts:
                    hook = self._hook(path, step, actions[step], fired, number)
                    module = self.model.get_submodule(path.partition("@")[0])
                    hooks.enter_context(module.register_forward_hook(hook))
            yield
        expected = [path for name in self.plan.regions for path in self.family_regions[name].cuts]
        if sorted(fired) != sorted(expected):
            raise RuntimeError(f"step {step}: expected one run of each of {expected}, saw {fired}")

    def _hook(self, path: str, step: int, action: "Action", fired: list[str], number: int) -> Any:
        calls, wanted_call = itertools.count(1), int(path.partition("@")[2] or 0)

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            if next(calls) != wanted_call and wanted_call:
                return output
            fired.append(path)
            points = self._computed.setdefault(path, [])
            if action.kind == "compute":
                points.append((step, self.keep(output.detach().clone())))
                self._newest[path] = points[-1][1]
                return output
            wanted = action.order + 1  # reuse has order 0
            if len(points) < wanted:
                raise ValueError(f"{path}, step {step}: {action} needs {wanted} computed steps, has {len(points)}")
            fitted = [each.values for each in self.plan.weights if (each.step, each.order) == (step, action.order)]
            if fitted and action.kind in ("forecast", "reuse"):
                read = [value for _, value in points[: -wanted - 1 : -1]] if action.order else [self._newest[path]]
                terms = zip(fitted[0], read, strict=True)
                return sum((weight * value.float() for weight, value in terms), torch.zeros(())).to(output.dtype)
            if action.kind == "forecast":
                return extrapolate(points[-wanted:], step).to(output.dtype)
            if action.kind == "prune":
                rate = action.rate if self._is_longest(path, number) else action.side_rate
                mixed = mixture(self._newest[path], output, rate, step, self.pickers.get(number, number))
                self._newest[path] = self.keep(mixed)
                return mixed
            return self._newest[path]

        return hook

    def _is_longest(self, path: str, number: int) -> bool:
        """Whether no cut of the region has more tokens than this one."""
        tokens = {cut: self._newest[cut].shape[1] for cut in self.family_regions[self.plan.regions[number]].cuts}
        return tokens[path] == max(tokens.values())


def mixture(old: Tensor, fresh: Tensor, rate: float, step: int, number: int) -> Tensor:
    """``old`` [rows, tokens, features] with its ``tokens - floor(rate * tokens)`` tokens of highest score fresh."""
    tokens = old.shape[1]
    scores = torch.from_numpy(random_scores(step, number, tokens))
    chosen = scores.argsort(descending=True)[: tokens - math.floor(rate * tokens)]
    mixed = old.clone()
    mixed[:, chosen] = fresh[:, chosen]
    return mixed


def tensors(output: Any) -> tuple[Tensor, ...]:
    """All tensors of a model's output, however nested."""
    if isinstance(output, Tensor):
        return (output,)
    values = output.values() if isinstance(output, Mapping) else output
    return tuple(tensor for value in values if value is not None for tensor in tensors(value))


def extrapolate(points: Sequence[tuple[int, Tensor]], step: int) -> Tensor:
    """Evaluates at ``step`` the polynomial through (step, value) ``points``, in float32 (Lagrange's form).

    One point gives a constant, two a line, three a parabola. The points need not be evenly spaced.
    """
    total = torch.zeros_like(points[0][1], dtype=torch.float32)
    for here, value in points:
        weight = 1.0
        for other, _ in points:
            if other != here:
                weight *= (step - other) / (here - other)
        total += weight * value.float()
    return total
