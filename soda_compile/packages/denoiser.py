"""A loaded package as a module that stands where the original denoiser stood."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from soda_compile.errors import OptionError, PackageError
from soda_compile.packages.arguments import decode_signature, flatten
from soda_compile.packages.manifest import dtype_name
from soda_compile.packages.sized_program import Mismatch, SizedProgram
from soda_compile.plans.plan import Plan
from soda_compile.runtime.current import BRANCH
from soda_compile.runtime.denoiser import OnMiss


class Config(dict[str, Any]):
    """The model's configuration, read as diffusers configurations are: by name or by attribute."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"the model's configuration has no {name!r}")
        return self[name]


class PackagedDenoiser(torch.nn.Module):
    """A denoiser that ``soda_compile.load`` read: called as the original is, step after step of its plan.

    Its weights are parameters and buffers under their original names, so ``soda_compile.trajectory(denoiser)``,
    ``state_dict`` and pipelines find them. It is inference only, and stays on its device and in its dtype.

    Attributes:
        plan: The plan.
        config: The original model's configuration.
        model_name: Class name of the original model.
        programs: The step programs, one for each set of shapes.
        on_miss: What calls do that the plan does not cover.
        around: Makes the context of each call, which tells its generation, where a scheduler is tied to it.
    """

    forward: Callable[..., Any]

    def __init__(
        self,
        model_name: str,
        config: Mapping[str, Any] | None,
        plan: Plan,
        programs: Sequence[SizedProgram],
        weights: Mapping[str, torch.Tensor],
    ) -> None:
        super().__init__()
        for name, tensor in weights.items():
            _register(self, name, tensor)
        self.model_name = model_name
        self.config = Config(config or {})
        self.plan = plan
        self.programs = tuple(programs)
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        self.on_miss: OnMiss = programs[0].planned.on_miss
        self._signature = decode_signature(programs[0].call.signature)

        def forward(*arguments: Any, **options: Any) -> Any:
            return self._run(arguments, options)

        forward.__signature__ = self._signature  # type: ignore[attr-defined]  # pipelines look at it
        self.forward = forward

    def _run(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        bound = self._signature.bind(*arguments, **options)
        bound.apply_defaults()
        leaves = flatten(bound.arguments)
        tensors = (value for value in leaves.values() if isinstance(value, torch.Tensor))
        if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
            raise OptionError(
                "the denoiser is called with gradients enabled, but a package has none. Call it under "
                "torch.no_grad() or torch.inference_mode()"
            )
        reasons = []
        for program in self.programs:
            try:
                values = program.sizes(leaves)
            except Mismatch as reason:
                reasons.append(str(reason))
            else:
                with self.around():
                    return program.run(leaves, values)
        raise PackageError(
            f"this package cannot run such a call: {'; or '.join(reasons)} when it was exported. Export with such "
            "inputs (dynamic_shapes or a list of example inputs makes a package for several shapes)"
        )

    @property
    def device(self) -> torch.device:
        """Return where it runs."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the first floating point parameter."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Return what some pipelines open around each call of a step: it names the branch of guidance."""
        return BRANCH.calling(name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "PackagedDenoiser":
        """Let ``.to`` and its like pass where they change nothing.

        Raises:
            PackageError: They would move or convert the weights, which compiled code cannot follow.
        """
        for tensor in (*self.parameters(), *self.buffers()):
            changed = fn(tensor)
            if (changed.device, changed.dtype) != (tensor.device, tensor.dtype):
                raise PackageError(
                    f"this package runs on {tensor.device} with {dtype_name(tensor.dtype)} weights; it cannot move to "
                    f"{changed.device} {dtype_name(changed.dtype)}. Export the model there"
                )
        return self

    def __repr__(self) -> str:
        return f"PackagedDenoiser({self.model_name}, {self.plan!r})"


def _register(module: torch.nn.Module, path: str, tensor: torch.Tensor) -> None:
    """Register a parameter or buffer under a dotted path, making empty modules on the way."""
    *parents, leaf = path.split(".")
    for name in parents:
        if name not in module._modules:
            module.add_module(name, torch.nn.Module())
        module = module.get_submodule(name)
    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter(leaf, tensor)
    else:
        module.register_buffer(leaf, tensor)
