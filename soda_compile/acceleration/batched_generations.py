"""Generations at different steps in one batch: those whose steps do the same share a call."""

import functools
import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch

from soda_compile.acceleration.batch_rows import BatchRows
from soda_compile.backend.entry import soda
from soda_compile.backend.options import check_options
from soda_compile.capture.forward import CompiledForward
from soda_compile.errors import OptionError, TrajectoryError
from soda_compile.integrations.base import around_calls, framework_of
from soda_compile.plans.plan import Plan
from soda_compile.runtime.batching import Apart, Together, due
from soda_compile.runtime.current import calling
from soda_compile.runtime.denoiser import PlannedDenoiser
from soda_compile.runtime.generation import Generation, new_generation
from soda_compile.runtime.misses import Miss

SIZES = (1, 2, 4, 8)


class BatchedGenerations:
    """Runs a denoiser by its plan for generations that began at different times, as many at once as do the same.

    For a server that steps all requests under way in turn::

        batched = soda_compile.BatchedGenerations(model, plan)
        requests = [batched.new_generation() for _ in range(3)]
        ...
        noise = batched(requests, latents, timesteps, prompts)  # row i belongs to requests[i], at a step of its own

    At each call the generations whose steps compute, reuse and forecast the same regions run together, in batches of
    the given sizes, each of which is compiled once; each generation keeps values of its own. What the plan does not
    cover computes everything, and ``soda_compile.stats`` counts it. Results are those of a generation alone, up to the
    rounding of kernels for another batch size. For one thread at a time; steps are not recorded as CUDA graphs.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        plan: Plan,
        *,
        sizes: Sequence[int] = SIZES,
        shared: Collection[str] = (),
        **options: Any,
    ) -> None:
        """Prepare a denoiser; each size is compiled at its first call, or by ``compile_ahead``.

        Args:
            model: The denoiser, not compiled. It takes a timestep for each row.
            plan: The plan.
            sizes: Numbers of generations that may share a call, 1 among them.
            shared: Arguments of ``model`` that all generations share although their first axis is as long as the
                batch. Tensors with another first axis, and what is no tensor, they share anyway.
            options: Further options of the backend, see ``Options``.

        Raises:
            OptionError: For sizes, names or options that make no sense.
        """
        if hasattr(model, "_orig_mod"):
            raise OptionError("BatchedGenerations compiles the model itself; pass compiled._orig_mod")
        if 1 not in sizes or min(sizes) < 1:
            raise OptionError(f"sizes is {tuple(sizes)}; it must hold 1, so that any number can be run, and no less")
        if plan.pruning is not None and plan.pruning.groups > 1:
            raise OptionError(
                f"the plan picks the same tokens for {plan.pruning.groups} parts of a batch, but generations come and "
                "go; plan with Pruning(..., groups=1)"
            )
        self._names = list(inspect.signature(model.forward).parameters)
        unknown = [name for name in shared if name not in self._names]
        if unknown:
            raise OptionError(f"{type(model).__name__}.forward takes no argument {unknown[0]!r} that could be shared")
        chosen = {**options, "plan": plan}
        checked = check_options(chosen)
        if checked.guard is not None:
            raise OptionError(
                "guard is for generations that run on their own: those that share a call share what it computes"
            )
        self.on_miss = checked.on_miss
        self.model = model
        self.sizes = tuple(sorted(set(sizes), reverse=True))
        self.shared = frozenset(shared)
        self._planned: PlannedDenoiser | None = None
        around = around_calls(model, framework_of(model))
        self._compiled = CompiledForward(model, functools.partial(soda, options=chosen), around)

    def new_generation(self, *, manual: bool = False) -> Generation:
        """Begin a generation; call its ``end`` when it is done or cancelled. See ``soda_compile.trajectory``."""
        return new_generation(self.model, manual=manual)

    @torch.no_grad()
    def __call__(self, generations: Sequence[Generation], *arguments: Any, **options: Any) -> Any:
        """Run the denoiser once for each generation.

        Args:
            generations: The generations, each once, whatever their steps.
            arguments: Arguments of the denoiser; each generation has equally many rows, in the same order.
            options: Its arguments by name.

        Returns:
            What the denoiser returns, rows in the same order.

        Raises:
            OptionError: If rows and generations do not go together, or one of them has ended.
            CaptureError: If what the model keeps cannot be divided by sample.
            TrajectoryError: With ``on_miss="error"``, for a call that the plan does not cover.
        """
        if not generations or len(set(map(id, generations))) < len(generations):
            raise OptionError(f"{len(generations)} generations are given; pass at least one, and each once")
        if ended := [each for each in generations if each.ended]:
            raise OptionError(f"{ended[0]!r} has ended; begin another with new_generation()")
        rows = self._rows(arguments, options, len(generations))
        waiting = self._groups(generations, range(len(generations)))
        parts: dict[tuple[int, ...], Any] = {}
        while waiting:
            numbers, misses = waiting.pop()
            together = Together([generations[number] for number in numbers], misses)
            try:
                parts[numbers] = self._run(together, rows.take(numbers))
            except Apart as apart:
                rest = [number for place, number in enumerate(numbers) if place not in apart.misses]
                waiting += self._groups(generations, rest)
                self._refuse(apart.misses.values())
                waiting += [((numbers[place],), [miss]) for place, miss in apart.misses.items()]
        return rows.put_together(parts)

    def compile_ahead(self, *arguments: Any, **options: Any) -> None:
        """Compile all sizes before the first request.

        Args:
            arguments: Arguments of the denoiser for one generation at its first step.
            options: Its arguments by name.
        """
        rows = self._rows(arguments, options, 1)
        for size in self.sizes:
            generations = [self.new_generation() for _ in range(size)]
            with torch.no_grad():
                self._run(Together(generations), rows.take([0] * size))
            for each in generations:
                each.end()

    def _rows(self, arguments: Sequence[Any], options: dict[str, Any], generations: int) -> BatchRows:
        shared = {index for index, _ in enumerate(arguments) if self._names[index] in self.shared} | self.shared
        return BatchRows.of({**dict(enumerate(arguments)), **options}, shared, generations)

    def _run(self, together: Together, arguments: dict[Any, Any]) -> Any:
        positional = [arguments.pop(index) for index in range(sum(isinstance(key, int) for key in arguments))]
        with calling(together):
            output = self._compiled(*positional, **arguments)
        self._planned = together.denoiser or self._planned
        return output

    def _groups(
        self, generations: Sequence[Generation], numbers: Sequence[int]
    ) -> list[tuple[tuple[int, ...], list[Miss] | None]]:
        """Return the generations that can share a call, by number, and why a plan covers none of them if so."""
        by_kind: dict[int, list[int]] = {}
        missed: dict[int, Miss] = {}
        for number in numbers:
            # Before anything was compiled no generation has begun, so they are all at their first step.
            kind = due(self._planned, generations[number]) if self._planned else 0
            if isinstance(kind, Miss):
                missed[number] = kind
            else:
                by_kind.setdefault(kind, []).append(number)
        self._refuse(missed.values())
        covered = [(part, None) for members in by_kind.values() for part in self._parts(members)]
        return [*covered, *((part, [missed[number] for number in part]) for part in self._parts([*missed]))]

    def _parts(self, numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Divide generations into batches of the sizes that are compiled, the largest first."""
        while numbers:
            size = next(size for size in self.sizes if size <= len(numbers))
            yield tuple(numbers[:size])
            numbers = numbers[size:]

    def _refuse(self, misses: Iterable[Miss]) -> None:
        if self.on_miss == "error":
            for miss in misses:
                raise TrajectoryError(str(miss))
