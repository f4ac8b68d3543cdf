"""The forward of a denoiser that accelerated pipelines share: each call goes to the pipeline that makes it."""

import functools
import logging
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from soda_compile.acceleration.beside import compile_beside, uncounted
from soda_compile.acceleration.driven import Driven
from soda_compile.acceleration.measuring import RELAY, Watch, observing
from soda_compile.backend.entry import soda, soda_plain
from soda_compile.capture.forward import CompiledForward, ReplacedForward, replace_forward, restore_forward
from soda_compile.errors import SodaError, TrajectoryError
from soda_compile.integrations.diffusers.branch_names import name_branches
from soda_compile.integrations.diffusers.drivers import driver
from soda_compile.integrations.diffusers.framework import holders
from soda_compile.integrations.diffusers.group_offload import around_calls
from soda_compile.plans.plan import Plan
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.current import BRANCH, Outside, calling
from soda_compile.runtime.misses import Miss
from soda_compile.runtime.statistics import statistics_of

log = logging.getLogger(__name__)


class Caller(Protocol):
    """An accelerated pipeline, to its denoisers."""

    def driven(self, scheduler: Any) -> Driven | None:
        """Return what a scheduler drives; None if it is no scheduler of this pipeline."""


@dataclass(eq=False)
class Member:
    """One accelerated pipeline's use of a denoiser.

    Attributes:
        name: Name of the denoiser in the pipeline.
        caller: The pipeline.
        options: Of the backend.
        compiled_beside: Whether generations go on without their plan while a thread compiles it.
    """

    name: str
    caller: Caller
    options: Mapping[str, Any]
    compiled_beside: bool = False
    _shared: "SharedDenoiser | None" = None
    _compiling: set[tuple[str, Hashable]] = field(default_factory=set)
    _compiled: dict[tuple[str, Hashable], CompiledForward] = field(default_factory=dict)

    @property
    def on_miss(self) -> str:
        """Return what calls do that no plan covers."""
        return str(self.options.get("on_miss", "plain"))

    def compiled(self, module: torch.nn.Module, plan: Plan, signature: Hashable) -> CompiledForward:
        """Return the forward compiled by a plan, for calls of one signature.

        Each signature has one of its own: Dynamo gives up when one has seen too many.
        """
        key = (plan.digest, signature)
        if key not in self._compiled:
            backend = functools.partial(soda, options={**self.options, "plan": plan})
            self._compiled.setdefault(key, CompiledForward(module, backend, dynamic=None))
        return self._compiled[key]

    def any_compiled(self, signature: Hashable) -> CompiledForward | None:
        """Return the forward compiled by whatever plan for calls of a signature: outside generations it is plain."""
        made = [key for key in self._compiled if key[1] == signature and key not in self._compiling]
        return self._compiled[made[0]] if made else None

    def ready(self, plan: Plan) -> bool:
        """Return whether a plan is compiled for calls like the last one; where it is not, a thread begins to.

        Nothing is waited for where no call was seen yet, or another thread must not touch the weights: the first call
        then compiles.
        """
        shared = self._shared
        if shared is None or shared.last is None or not self.compiled_beside or shared.offloaded:
            return True
        key = (plan.digest, signature_of(shared.last))
        if key not in self._compiled:
            self._compiling.add(key)
            run, (arguments, options) = self.compiled(shared.module, plan, key[1]), shared.last

            def compile_by_a_call() -> None:
                with uncounted(Clock(restarts=True)):
                    run(*arguments, **options)

            compile_beside(compile_by_a_call, _say_failed, lambda: self._compiling.discard(key))
        return key not in self._compiling

    def leave(self) -> None:
        """Take the pipeline off the denoiser."""
        if self._shared is not None:
            self._shared.leave(self)


def _say_failed(error: Exception) -> None:
    """Say that a plan was not compiled beside; the next call like that one fails where the user sees it."""
    log.warning("compiling beside generations failed: %s: %s", type(error).__name__, error)


@dataclass(eq=False)
class SharedDenoiser:
    """A denoiser whose forward is replaced, and the pipelines that did it.

    Attributes:
        module: The denoiser.
        members: The pipelines' uses of it.
        last: The arguments of the last call, where a member has plans compiled beside.
    """

    module: torch.nn.Module
    members: list[Member] = field(default_factory=list)
    last: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    _plain: dict[Hashable, CompiledForward] = field(default_factory=dict)
    _observing: dict[Hashable, CompiledForward] = field(default_factory=dict)
    _forward: ReplacedForward | None = None
    _unname: Callable[[], None] | None = None
    _around: Callable[[], AbstractContextManager[None]] = nullcontext
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def join(self, member: Member) -> Member:
        """Add a pipeline; the first replaces the forward.

        Raises:
            OptionError: If the forward is replaced by something else.
        """
        with self._lock:
            if self._forward is None:
                self._forward = replace_forward(self.module, self, holders)
                self._unname = name_branches(self.module, BRANCH)
            self.members.append(member)
            member._shared = self
        return member

    def leave(self, member: Member) -> None:
        """Take a pipeline off; the last puts the forward back."""
        with self._lock:
            self.members.remove(member)
            if not self.members and self._forward is not None and self._unname is not None:
                restore_forward(self.module, self._forward)
                self._unname()
                self._forward = None

    def prepare(self) -> None:
        """Look again at how the weights are kept, before a trajectory begins.

        Raises:
            OptionError: They are kept in a way that cannot be captured.
        """
        self._around = around_calls(self.module)

    @property
    def offloaded(self) -> bool:
        """Return whether weights are brought in for each call."""
        return self._around is not nullcontext

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run the denoiser for the pipeline that calls it."""
        member, drives = self._caller()
        if member.compiled_beside:
            self.last = (arguments, options)
        signature = signature_of((arguments, options))
        plan, generation = drives.call(member.name, member.on_miss) if drives else (None, Outside(_NO_CALLER))
        watch = drives.watch if drives is not None else None
        if drives is not None and watch is not None and member.name in watch.observations:
            try:
                return self._observed(member, watch, signature, arguments, options)
            except SodaError as error:  # whatever cannot be measured runs all the same
                watch.give_up(str(error))
                drives.watch = None
        if isinstance(generation, Outside):
            compiled = member.any_compiled(signature)
            if compiled is None and member.compiled_beside and signature in self._observing:
                self._count(generation.reason)  # nothing else need be compiled, which would wait for the thread
                compiled = self._observing[signature]
            elif compiled is None:
                compiled = self._compiled_plain(member, signature, generation.reason)
        else:
            assert plan is not None
            compiled = member.compiled(self.module, plan, signature)
        with calling(generation), self._around():
            return compiled(*arguments, **options)

    def _caller(self) -> tuple[Member, Driven | None]:
        """Return the pipeline that calls, and what its scheduler drives; any pipeline and None if it is another's."""
        scheduler = driver(lambda value: any(member.caller.driven(value) for member in self.members))
        if scheduler is not None:
            for member in self.members:
                drives = member.caller.driven(scheduler)
                if drives is not None:
                    return member, drives
        return self.members[0], None

    def _observed(
        self, member: Member, watch: Watch, signature: Hashable, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Run the denoiser for a generation that is measured."""
        if signature not in self._observing:
            backend = functools.partial(soda, options={"observer": RELAY})
            self._observing.setdefault(signature, CompiledForward(self.module, backend, dynamic=None))
        self._count(watch.reason)
        with observing(watch.observations[member.name]), self._around():
            return self._observing[signature](*arguments, **options)

    def _count(self, reason: str) -> None:
        """Count a call that runs as it did when it was measured."""
        statistics_of(next(self.module.parameters())).miss(None, Miss("measured", reason))

    def _compiled_plain(self, member: Member, signature: Hashable, reason: str) -> CompiledForward:
        if member.on_miss == "error":
            raise TrajectoryError(reason)
        if signature not in self._plain:
            backend = functools.partial(soda_plain, options=member.options, miss=Miss("outside", reason))
            self._plain.setdefault(signature, CompiledForward(self.module, backend, dynamic=None))
        return self._plain[signature]


_NO_CALLER = (
    "the denoiser is called by no pipeline that is accelerated, nor with a copy of its scheduler; accelerate the "
    "pipeline that calls it, or drive it by the scheduler of one that is"
)


def shared_denoiser(module: torch.nn.Module) -> SharedDenoiser:
    """Return what stands for a denoiser's forward, a new one where nothing does yet."""
    for holder in holders(module):
        value = holder.value
        if isinstance(value, ReplacedForward) and isinstance(value.function, SharedDenoiser):
            return value.function
    return SharedDenoiser(module)


def signature_of(value: Any) -> Hashable:
    """Return shapes and dtypes of all tensors in nested arguments."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, Mapping):
        return tuple((key, signature_of(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(signature_of, value))
    return None
