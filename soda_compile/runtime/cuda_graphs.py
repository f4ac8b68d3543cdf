"""Steps as CUDA graphs: each distinct step is recorded once, as a whole, and replayed with one launch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from soda_compile.compiler.program import Program
from soda_compile.errors import CaptureError
from soda_compile.runtime.execution import run_step

log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records what a device is asked to do."""

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """Records ``body`` without running it; what comes back runs it on the same memory."""


@dataclass(frozen=True, eq=False)
class CudaRecorder:
    """Records CUDA graphs that share one pool of memory, as they never run at the same time.

    Attributes:
        device: The device.
        pool: The pool.
    """

    device: torch.device
    pool: Any = field(default_factory=torch.cuda.graph_pool_handle)

    def record(self, body: Callable[[], None]) -> Callable[[], None]:
        """See ``Recorder``. The host must not wait for the device in ``body``."""
        graph = torch.cuda.CUDAGraph()
        # Threads that load or decode something else meanwhile do no harm.
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"),
        ):
            body()
        replay: Callable[[], None] = graph.replay
        return replay


def recorder_for(device: torch.device) -> Recorder | None:
    """What records steps on a device; None where nothing can."""
    return CudaRecorder(device) if device.type == "cuda" else None


@dataclass(eq=False)
class StepGraphs:
    """The recorded steps of one branch of guidance.

    Slots, weights and copies of the other inputs have fixed addresses, so any step may follow any other. The first
    time a step runs as it is, which loads and tunes its kernels; the second time it is recorded.

    Attributes:
        registers: The branch's registers; slots among them are written in place.
        fixed: For each input whether it is a weight: its address is recorded, and a new address records anew.
        recorder: Records.
    """

    registers: list[Any]
    fixed: tuple[bool, ...]
    recorder: Recorder
    _addresses: tuple[int, ...] = ()
    _copies: list[torch.Tensor] = field(default_factory=list)  # of inputs
    _given: list[torch.Tensor] = field(default_factory=list)  # copies of conditioning
    _seen: set[tuple[int, bool]] = field(default_factory=set)
    _graphs: dict[tuple[int, bool], tuple[Callable[[], None], list[Any]]] = field(default_factory=dict)

    def run(
        self, program: Program, step: int, inputs: Sequence[Any], given: Sequence[torch.Tensor] | None = None
    ) -> list[Any]:
        """Runs one step, see ``run_step``; always of the same program. What it gives is the caller's to keep."""
        self._require_addresses(inputs)
        kind = (program.distinct_steps[step], given is not None)
        if kind not in self._seen:
            self._seen.add(kind)
            return run_step(program, step, self.registers, inputs, given, in_place=True)
        _copy([value for value, fixed in zip(inputs, self.fixed, strict=True) if not fixed], self._copies)
        _copy(given or (), self._given)
        if kind not in self._graphs:
            self._graphs[kind] = self._record(program, step, inputs, None if given is None else self._given)
        replay, outputs = self._graphs[kind]
        replay()
        return [None if value is None else value.clone() for value in outputs]

    def _require_addresses(self, inputs: Sequence[Any]) -> None:
        """Drops the graphs where a weight has moved."""
        weights = [value for value, fixed in zip(inputs, self.fixed, strict=True) if fixed]
        addresses = tuple(map(torch.Tensor.data_ptr, weights))
        if addresses != self._addresses:
            self._addresses = addresses
            self._graphs.clear()

    def _record(
        self, program: Program, step: int, inputs: Sequence[Any], given: Sequence[torch.Tensor] | None
    ) -> tuple[Callable[[], None], list[Any]]:
        copies = iter(self._copies)
        bound = [value if fixed else next(copies) for value, fixed in zip(inputs, self.fixed, strict=True)]
        outputs: list[Any] = []

        def body() -> None:
            outputs.extend(run_step(program, step, self.registers, bound, given, in_place=True))

        try:
            replay = self.recorder.record(body)
        except RuntimeError as error:
            raise CaptureError(
                f"step {step} cannot be recorded as a CUDA graph: {error}. Compile with mode=None or "
                "mode='max-autotune-no-cudagraphs'"
            ) from error
        return replay, outputs


def _copy(values: Sequence[torch.Tensor], copies: list[torch.Tensor]) -> None:
    """Copies to fixed addresses, which the first call makes."""
    if not values:
        return
    with torch.inference_mode(False), torch.no_grad():
        if not copies:
            copies += [torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=v.device) for v in values]
        torch._foreach_copy_(copies, list(values), non_blocking=True)  # one launch for those of one dtype


@dataclass(eq=False)
class Recording:
    """Decides whether the steps of one compiled signature are recorded.

    Attributes:
        weights: For each input whether it is a parameter or buffer.
    """

    weights: tuple[bool, ...]
    _recorder: Recorder | None = None
    _refused: bool = False

    def start(self, program: Program, registers: list[Any], inputs: Sequence[Any]) -> StepGraphs | None:
        """The recorded steps of a new stream, none yet; None where steps cannot be recorded, with a warning."""
        if self._refused:
            return None
        device = inputs[self.weights.index(True)].device
        if self._recorder is None:
            self._recorder = recorder_for(device)
        found = _obstacle(program, inputs, device)
        if self._recorder is None or found:
            self._refused = True
            if found and self._recorder:
                log.warning("steps run without CUDA graphs: %s", found)
            return None
        return StepGraphs(registers, self.weights, self._recorder)


def _obstacle(program: Program, inputs: Sequence[Any], device: torch.device) -> str | None:
    """Why steps cannot be recorded: a graph would keep what the host passes by value."""
    for number, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            return f"input {number} is a {type(value).__name__}, not a tensor"
        if value.device != device:
            what = f"input {number} ({value.dtype}, shape {tuple(value.shape)})"
            return f"{what} lies on {value.device}, the model on {device}; move it there"
    for tensor in program.tensors.values():
        if tensor.device != device:
            return f"the model makes a tensor on {tensor.device} while it runs, and lies on {device}"
    return None
