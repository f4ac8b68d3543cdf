"""The observer that calibration uses: keeps a window of past values and accumulates their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from soda_compile.clock import Clock
from soda_compile.errors import SensitivityError
from soda_compile.gram import ErrorEntries, Floats, cosine_errors, difference_gram, squared_errors
from soda_compile.observing import residual_heads
from soda_compile.passes.observe import ResidualHead
from soda_compile.residual_weight import residual_weight
from soda_compile.structure import Region, Structure

METRICS = ("cosine", "relative", "residual")


@dataclass
class Moments:
    """Count, mean and summed squared deviation of samples, each [metrics, entries]; NaN entries are not counted."""

    count: Floats
    mean: Floats
    deviation: Floats

    @classmethod
    def empty(cls, entries: int) -> Moments:
        """No samples yet."""
        return cls(*(np.zeros((len(METRICS), entries)) for _ in range(3)))

    def add(self, samples: Floats) -> None:
        """Adds samples [rows, metrics, entries] (Chan's parallel formula)."""
        known = ~np.isnan(samples)
        count = known.sum(0)
        mean = np.where(known, samples, 0.0).sum(0) / np.maximum(count, 1)
        deviation = (np.where(known, samples - mean, 0.0) ** 2).sum(0)
        total = np.maximum(self.count + count, 1)
        difference = mean - self.mean
        self.deviation += deviation + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count += count


@dataclass(eq=False)
class Recorder:
    """Accumulates errors over generations.

    Attributes:
        clock: Tells the step; it begins a trajectory for each generation.
        calls_per_step: Denoiser calls in a step, where no scheduler advances the clock.
        entries: The predictions to score.
        memory_bytes: Bound on the memory of all windows; tokens are subsampled to keep it.
    """

    clock: Clock
    calls_per_step: int
    entries: ErrorEntries
    memory_bytes: int
    structure: Structure | None = None
    moments: dict[tuple[int, int], Moments] = field(default_factory=dict)  # by step and region
    inputs: list[dict[str, float]] = field(default_factory=list)  # numbers among the inputs, by call of a generation
    samples: int = 0
    calls_in_a_step: int = 1
    stride: int = 1
    _heads: tuple[ResidualHead, ...] = ()
    _regions: tuple[Region, ...] = ()
    _windows: dict[tuple[int, int], list[torch.Tensor]] = field(default_factory=dict)  # by stream and region
    _trajectory: int = 0
    _calls: int = 0
    _calls_in_step: int = 0
    _step: int = 0
    _stream: int = 0
    _rows: int = 1

    def start(self, structure: Structure) -> None:
        """Learns the regions; a second shape must be of the same model."""
        if self.structure is not None and self.structure.fingerprint != structure.fingerprint:
            raise SensitivityError("the calibrated model changed its structure between calls; calibrate one model")
        if not structure.regions:
            raise SensitivityError("no region was found in this model; soda_compile.inspect(model, ...) says why")
        self.structure = structure
        self._heads = residual_heads(structure)
        self._regions = structure.regions
        window = sum(region.memory_bytes for region in structure.regions) * (self.entries.lags + 1)
        self.stride = max(self.stride, math.ceil(window * self.calls_per_step / self.memory_bytes))

    def begin_call(self, inputs: Mapping[str, Any]) -> None:
        """Places the call in the trajectory."""
        if self.clock.trajectory != self._trajectory:
            self._trajectory, self._calls, self._calls_in_step, self._step = self.clock.trajectory, 0, 0, 0
            self.inputs.clear()
            self._windows.clear()
        if self.clock.automatic:
            step, self._stream = divmod(self._calls, self.calls_per_step)
        else:
            step = self.clock.step
            self._stream = self._calls_in_step if step == self._step else 0
        self._step = step
        self._calls_in_step = self._stream + 1
        self.calls_in_a_step = max(self.calls_in_a_step, self._calls_in_step)
        self._calls += 1
        self._rows = next(
            (len(value) for value in inputs.values() if isinstance(value, torch.Tensor) and value.ndim > 1), 1
        )
        if self._stream == 0:
            self.inputs.append(
                {name: number for name, value in inputs.items() if (number := _number(value)) is not None}
            )

    @property
    def steps(self) -> int:
        """Steps of the present trajectory so far."""
        return self._step + 1 if self._calls else 0

    def record(self, region: int, values: Mapping[str, torch.Tensor]) -> None:
        """Scores all predictions of one region against its present value, and keeps that value."""
        cuts = [values[cut.node] for cut in self._regions[region].cuts]
        rows = self._rows if all(len(cut) % self._rows == 0 for cut in cuts) else 1
        present = self._flatten(cuts, rows)
        window = self._windows.setdefault((self._stream, region), [])
        if window:
            past = torch.stack(window)
            samples = self._score(region, values, cuts, present, past, rows)
            key = (self._step, region)
            self.moments.setdefault(key, Moments.empty(samples.shape[-1])).add(samples)
        if region == 0 and self._step == 0:
            self.samples += rows
        window.insert(0, present)
        del window[self.entries.lags :]

    def end_call(self) -> None:
        """Nothing is left to do."""

    def _flatten(self, tensors: list[torch.Tensor], rows: int) -> torch.Tensor:
        """Tensors [rows * k, tokens, features] as [rows, kept features], every ``stride``-th token."""
        flat = [tensor.reshape(rows, -1, tensor.shape[-1])[:, :: self.stride].flatten(1) for tensor in tensors]
        return torch.cat(flat, dim=1)

    def _score(
        self,
        region: int,
        values: Mapping[str, torch.Tensor],
        cuts: list[torch.Tensor],
        present: torch.Tensor,
        past: torch.Tensor,
        rows: int,
    ) -> Floats:
        """Errors [rows, metrics, entries]."""
        available = len(past)
        square, cross, gram = difference_gram(present, past)
        error = squared_errors(self.entries, gram, available)
        cosine = cosine_errors(self.entries, square, cross, error, available)
        relative = np.sqrt(error / np.maximum(square, 1e-30)[:, None])
        head = self._heads[region]
        carry = sum(_by_row(values[f"|{name}|"], rows) for name in self._regions[region].carries)
        scale = self._kept_share(cuts, rows, present)
        weights = residual_weight(head, cuts, [values[name] for name in head.others])
        if weights is not None:
            _, _, gram = difference_gram(present, past, self._flatten(weights, rows))
            error = squared_errors(self.entries, gram, available)
        residual = np.sqrt(error / scale / np.maximum(carry, 1e-30)[:, None])
        return np.stack([cosine, relative, residual], axis=1)

    def _kept_share(self, cuts: list[torch.Tensor], rows: int, present: torch.Tensor) -> float:
        return present.numel() / sum(cut.numel() for cut in cuts)


def _by_row(squares: torch.Tensor, rows: int) -> Floats:
    """Squared sizes [rows * k] summed to [rows]."""
    summed: Floats = squares.reshape(rows, -1).sum(1).double().cpu().numpy()
    return summed


def _number(value: Any) -> float | None:
    """The number that an input holds, if all its elements are the same one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, torch.Tensor) and value.ndim <= 1 and value.numel():
        first = value.flatten()[0]
        return float(first) if bool((value == first).all()) else None
    return None
