"""One module's forward, compiled or replaced for a while, without touching its class or the hooks around it."""

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch

from soda_compile.capture.stand_ins import StandIn, keep_in_copies, leave_out_of_copies
from soda_compile.distributed.modules import require_whole_graph
from soda_compile.errors import OptionError
from soda_compile.torch_internals.backend_errors import errors_unwrapped
from soda_compile.torch_internals.tracing import (
    capture_failures,
    forget_compiled,
    limit_hit,
    recompile_limit,
    unchecked,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Holder:
    """A place where a bound forward is kept: the module itself, or a hook that wraps it."""

    owner: Any
    name: str

    @property
    def value(self) -> Any:
        """Return the forward."""
        return getattr(self.owner, self.name)

    def set(self, value: Any) -> None:
        """Put another forward there."""
        setattr(self.owner, self.name, value)


Holders = Callable[[torch.nn.Module], Iterable[Holder]]


def own_holder(module: torch.nn.Module) -> tuple[Holder, ...]:
    """Return the one place where a module that no framework has hooked keeps its forward."""
    return (Holder(module, "forward"),)


class ReplacedForward(StandIn):
    """The function that stands in for a module's forward; copies of the module run the original, on the copy.

    Attributes:
        holders: Where the module's forward may be kept.
    """

    def __init__(self, original: MethodType, function: Callable[..., Any], holders: Holders) -> None:
        super().__init__(original, function)
        self.holders = holders


def replace_forward(
    module: torch.nn.Module, function: Callable[..., Any], holders: Holders = own_holder
) -> ReplacedForward:
    """Put ``function`` where the module's own forward is; hooks that wrap it stay around it.

    Raises:
        OptionError: If the forward is replaced already, or compiled by other means.
    """
    if getattr(module, "_compiled_call_impl", None) is not None:
        raise OptionError(f"this {type(module).__name__} is compiled already; take it before .compile()")
    for holder in holders(module):
        value = holder.value
        if isinstance(value, MethodType) and value.__self__ is module and value.__func__ is _own_forward(module):
            replaced = ReplacedForward(value, function, holders)
            holder.set(replaced)
            leave_out_of_copies(module)
            return replaced
    raise OptionError(
        f"the forward of this {type(module).__name__} is replaced already; if soda_compile did it, call "
        "soda_compile.restore(pipe) first"
    )


def restore_forward(module: torch.nn.Module, replaced: ReplacedForward) -> None:
    """Take back ``replace_forward``, unless somebody else has replaced the forward since."""
    for holder in replaced.holders(module):
        if holder.value is replaced:
            if holder.owner is module and holder.name == "forward":
                del module.forward
            else:
                holder.set(replaced.method)
    keep_in_copies(module)


@contextmanager
def compile_forward(
    module: torch.nn.Module,
    backend: Callable[..., Any],
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
    holders: Holders = own_holder,
) -> Iterator["CompiledForward"]:
    """Replace the module's forward by a compiled one inside the context.

    See ``CompiledForward`` and ``replace_forward`` for the arguments and errors.
    """
    compiled = CompiledForward(module, backend, around)
    replaced = replace_forward(module, compiled, holders)
    try:
        yield compiled
    finally:
        restore_forward(module, replaced)


@dataclass(eq=False)
class CompiledForward:
    """A module's forward, compiled as one graph where that is possible; the module stays as it is.

    Some models make tables at their first call, which cannot be captured: they are called once more. Some read data on
    the host: they are captured in several graphs, and the reason is logged.

    Raises OptionError where a part of the module is sharded on its own, see ``require_whole_graph``.

    Attributes:
        module: The module; hooks on it are left out.
        backend: A backend of ``torch.compile``.
        around: Makes a context for each call.
        dynamic: As for ``torch.compile``; None where sizes are always the same, so that only numbers may vary.
        reason: Why it is captured in several graphs; None where it is not.
    """

    module: torch.nn.Module
    backend: Callable[..., Any]
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    dynamic: bool | None = False
    reason: Exception | None = None

    def __post_init__(self) -> None:
        require_whole_graph(self.module)
        forward: Any = self.module.forward  # hooks keep here what is no method
        bound = isinstance(forward, MethodType) and forward.__self__ is self.module
        self._forward: Any = forward if bound else MethodType(_own_forward(self.module), self.module)
        self._codes: list[CodeType] = []
        weakref.finalize(self, forget_compiled, self._codes).atexit = False
        self._compiled = [self._compile(whole=True)]
        self._settled = False
        self._lock = threading.RLock()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run the module, compiled at the first call of its kind."""
        with self.around():
            if self._settled:
                return self._run(arguments, options)
            with self._lock:  # threads that come at once wait for the one that finds out how it is captured
                return self._run(arguments, options) if self._settled else self._first(arguments, options)

    def _run(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Run the first that was compiled for such a call, or one more: Dynamo lets each be compiled a few times."""
        for compiled in self._compiled:
            try:
                return compiled(*arguments, **options)
            except limit_hit():
                continue
        with self._lock:
            log.warning(
                "%s was compiled %d times for arguments of equal shapes: numbers that are no tensors, names of "
                "adapters or Python state differ between calls, and each value is compiled anew",
                type(self.module).__name__, len(self._compiled) * recompile_limit(),
            )  # fmt: skip
            self._compiled.append(self._compile(whole=self.reason is None))
            compiled = self._compiled[-1]
        return compiled(*arguments, **options)

    def _first(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            result = self._compiled[0](*arguments, **options)
        except capture_failures():
            self._forward(*arguments, **options)
            self._compiled = [self._compile(whole=True)]
            try:
                result = self._compiled[0](*arguments, **options)
            except capture_failures() as error:
                log.warning("%s is captured in several graphs: %s", type(self.module).__name__, error)
                self.reason = error
                self._compiled = [self._compile(whole=False)]
                result = self._compiled[0](*arguments, **options)
        self._settled = True
        return result

    def _compile(self, whole: bool) -> Callable[..., Any]:
        """Compile the forward with a code object of its own, so that any number of instances live side by side.

        Dynamo counts recompilations by code object, which all instances of a class share, and gives up after a few.
        """
        function = self._forward.__func__
        own = FunctionType(
            function.__code__.replace(),
            function.__globals__,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        own.__kwdefaults__ = function.__kwdefaults__
        self._codes.append(own.__code__)
        backend = errors_unwrapped(self.backend)
        compiled = torch.compile(MethodType(own, self.module), backend=backend, fullgraph=whole, dynamic=self.dynamic)
        return unchecked(compiled) if whole else compiled


def _own_forward(module: torch.nn.Module) -> FunctionType:
    forward: FunctionType = type(module).forward  # type: ignore[assignment]
    return forward
