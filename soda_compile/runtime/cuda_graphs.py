"""Steps as CUDA graphs: each distinct step is recorded once, as a whole, and replayed with one launch."""

import logging
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from soda_compile.compiler.program import Program
from soda_compile.errors import CaptureError
from soda_compile.runtime.execution import run_owned, run_step

log = logging.getLogger(__name__)


_CAPTURING = threading.Lock()  # one stream at a time: to begin, torch waits for the device, which ends other captures


class GraphCapturer(Protocol):
    """Captures the work of a device."""

    @property
    def lock(self) -> threading.Lock:
        """Held from a replay until its outputs are copied: all graphs share their memory."""

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Capture ``body`` without running it; return a function that runs it on the same memory."""


@dataclass(frozen=True, eq=False)
class CudaGraphCapturer:
    """Captures CUDA graphs of one stream. They share one pool of memory, as they never run at the same time.

    Attributes:
        device: The device.
        pool: The pool.
        lock: See ``GraphCapturer``.
    """

    device: torch.device
    pool: Any = field(default_factory=torch.cuda.graph_pool_handle)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _keepers: list[torch.cuda.CUDAGraph] = field(default_factory=list)

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Capture as ``GraphCapturer`` says; the host must not wait for the device in ``body``."""
        with _CAPTURING, torch.cuda.device(self.device):
            if not self._keepers:  # a pool without graphs is gone for good
                self._keepers.append(self._graph_of(lambda: torch.zeros(1, device=self.device)))
            replay: Callable[[], None] = self._graph_of(body).replay
            return replay

    def _graph_of(self, body: Callable[[], Any]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that load or decode something else meanwhile do no harm.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                body()
        except BaseException:
            self._end_capture_of_random_numbers()
            raise
        return graph

    def _end_capture_of_random_numbers(self) -> None:
        """Give the device's generator a state of its own; that of a capture that failed draws no more."""
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        generator: torch.Generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())


def capturer_for(device: torch.device) -> GraphCapturer | None:
    """Return the capturer of a device; None where there is none."""
    return CudaGraphCapturer(device) if device.type == "cuda" else None


def stream_of(inputs: Sequence[Any]) -> int:
    """Return the number of the device's stream on which a call with these inputs runs; 0 where there are none."""
    device = next((value.device for value in inputs if isinstance(value, torch.Tensor)), None)
    return torch.cuda.current_stream(device).cuda_stream if device is not None and device.type == "cuda" else 0


@dataclass(eq=False)
class StepGraphs:
    """The recorded steps of one set of slots.

    Slots, weights and copies of the other inputs have fixed addresses, so any step may follow any other. The first
    time in a thread a step runs as it is, which loads and tunes its kernels; the second time it is recorded.

    Attributes:
        registers: Registers; slots among them are written in place.
        fixed: For each input whether it is a weight: its address is recorded, and a new address records anew.
        capturer: Captures the steps.
    """

    registers: list[Any]
    fixed: tuple[bool, ...]
    capturer: GraphCapturer
    _addresses: tuple[int, ...] = ()
    _copies: dict[int, torch.Tensor] = field(default_factory=dict)  # of inputs, by position
    _copied: dict[int, "weakref.ref[torch.Tensor]"] = field(default_factory=dict)  # of prepared ones
    _seen: set[tuple[int, int]] = field(default_factory=set)  # by thread: libraries' handles are those of a thread
    _graphs: dict[int, tuple[Callable[[], None], list[Any]]] = field(default_factory=dict)

    def run(self, program: Program, step: int, inputs: Sequence[Any]) -> list[Any]:
        """Run one step, see ``run_step``; always of the same program. The caller may keep the outputs."""
        self._require_addresses(inputs)
        kind = program.distinct_steps[step]
        here = threading.get_ident(), kind
        if kind not in self._graphs and here not in self._seen:
            self._seen.add(here)
            return run_owned(program, step, self.registers, inputs, in_place=True)
        self._copy(inputs, program.registers_read[kind], len(inputs) - program.prepared)
        if kind not in self._graphs:
            self._graphs[kind] = self._record(program, step, inputs)
        replay, outputs = self._graphs[kind]
        with self.capturer.lock:
            replay()
            return [None if value is None else value.clone() for value in outputs]

    def _require_addresses(self, inputs: Sequence[Any]) -> None:
        """Drop the graphs where a weight has moved."""
        weights = [value for value, fixed in zip(inputs, self.fixed, strict=True) if fixed]
        addresses = tuple(map(torch.Tensor.data_ptr, weights))
        if addresses != self._addresses:
            self._addresses = addresses
            self._graphs.clear()

    def _copy(self, inputs: Sequence[Any], read: Collection[int], prepared: int) -> None:
        """Copy what is read to fixed addresses; prepared inputs, which nobody writes to, only where they are new."""
        new = {
            at: value
            for at, (value, fixed) in enumerate(zip(inputs, self.fixed, strict=True))
            if not fixed and at in read and not (at in self._copied and self._copied[at]() is value)
        }
        if not new:
            return
        self._copied |= {at: weakref.ref(value) for at, value in new.items() if at >= prepared}
        with torch.inference_mode(False), torch.no_grad():
            for at, v in new.items():
                if at not in self._copies:
                    self._copies[at] = torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=v.device)
            copies = [unrepeated(self._copies[at]) for at in new]
            values = [unrepeated(value) for value in new.values()]
            torch._foreach_copy_(copies, values, non_blocking=True)  # one launch for those of one dtype

    def _record(self, program: Program, step: int, inputs: Sequence[Any]) -> tuple[Callable[[], None], list[Any]]:
        pairs = enumerate(zip(inputs, self.fixed, strict=True))
        bound = [value if fixed else self._copies.get(at) for at, (value, fixed) in pairs]
        outputs: list[Any] = []

        def body() -> None:
            outputs.extend(run_step(program, step, self.registers, bound, in_place=True))

        try:
            replay = self.capturer.capture(body)
        except RuntimeError as error:
            raise CaptureError(
                f"step {step} cannot be recorded as a CUDA graph: {error}. Compile with mode=None or "
                "mode='max-autotune-no-cudagraphs'"
            ) from error
        return replay, outputs


def unrepeated(value: torch.Tensor) -> torch.Tensor:
    """Return what there is of an expanded tensor in memory."""
    for axis, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        if size > 1 and stride == 0:
            value = value.narrow(axis, 0, 1)
    return value


@dataclass(eq=False)
class Recording:
    """Decides whether the steps of one compiled signature are recorded.

    Attributes:
        weights: For each input whether it is a parameter or buffer.
    """

    weights: tuple[bool, ...]
    _capturers: dict[int, GraphCapturer | None] = field(default_factory=dict)  # by stream
    _refused: bool = False

    def start(self, program: Program, registers: list[Any], inputs: Sequence[Any]) -> StepGraphs | None:
        """Return the recorded steps of new slots, none yet; None, with a warning, where steps cannot be recorded."""
        if self._refused:
            return None
        device = inputs[self.weights.index(True)].device
        stream = stream_of(inputs)
        if stream not in self._capturers:
            self._capturers[stream] = capturer_for(device)
        capturer = self._capturers[stream]
        found = _obstacle(program, inputs, device)
        if capturer is None or found:
            self._refused = True
            if found and capturer:
                log.warning("steps run without CUDA graphs: %s", found)
            return None
        return StepGraphs(registers, self.weights, capturer)


def _obstacle(program: Program, inputs: Sequence[Any], device: torch.device) -> str | None:
    """Return why steps cannot be recorded: a graph would keep what the host passes by value."""
    read = frozenset().union(*program.registers_read.values())
    for number, value in enumerate(inputs):
        if number not in read:
            continue  # such as a number that only tells a size
        if not isinstance(value, torch.Tensor):
            return f"input {number} is a {type(value).__name__}, not a tensor"
        if value.device != device:
            what = f"input {number} ({value.dtype}, shape {tuple(value.shape)})"
            return f"{what} lies on {value.device}, the model on {device}; move it there"
    for tensor in program.tensors.values():
        if tensor.device != device:
            return f"the model makes a tensor on {tensor.device} while it runs, and lies on {device}"
    return None
