"""The observer that calibration uses: keeps past values and accumulates the errors of predictions from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from soda_compile.distributed.group import Alone, Reduction
from soda_compile.errors import OptionError, SensitivityError
from soda_compile.ir.structure import Structure
from soda_compile.measure.gram import ErrorEntries, Floats
from soda_compile.measure.history import History, TokenGroup
from soda_compile.measure.moments import Moments
from soda_compile.measure.observed_regions import ObservedRegion, ObservedRegions
from soda_compile.measure.prune_errors import longest_groups, pruned_products
from soda_compile.measure.residual_weight import residual_weight
from soda_compile.measure.scoring import errors_of, prediction_products
from soda_compile.measure.token_subsampling import subsample_tokens
from soda_compile.plans.actions import PRUNE_RATES
from soda_compile.runtime.call_counter import Branch, CallCounter, CountedCall
from soda_compile.runtime.clock import Clock
from soda_compile.runtime.misses import Miss

_DRAWS = 0x50DA  # keeps the draws of the random score apart from what ``generate`` draws with the same seed
_FEW_BYTES, _FEW_TOKENS, _TURNS = 2**25, 16, 4
_NO_CALL = CountedCall(0, -1, Branch(None, 0), 0)


@dataclass(eq=False)
class ErrorAccumulator:
    """Accumulates errors over generations.

    Attributes:
        clock: Tells the step; it begins a trajectory for each generation.
        counter: Counts the calls, by that clock.
        entries: The predictions to score.
        memory_bytes: Bound on the memory of all histories; tokens are subsampled to keep it.
        prune_scores: The scores by which pruning is measured as well.
        ranks: Adds up what several processes see of one value, each a part.
        structure: The calibrated model.
        moments: Errors by step and region.
        inputs: Numbers among the inputs, by step of the present generation.
        least_tokens: Tokens of each region that are kept whatever their memory.
        turns: In how many generations each region has its turn once; generations are slowed down the less.
        histories: Past values by branch of guidance and region.
    """

    clock: Clock
    counter: CallCounter
    entries: ErrorEntries
    memory_bytes: int
    prune_scores: tuple[str, ...] = ()
    ranks: Reduction = field(default_factory=Alone)
    structure: Structure | None = None
    moments: dict[tuple[int, int], Moments] = field(default_factory=dict)
    inputs: list[dict[str, float]] = field(default_factory=list)
    samples: int = 0
    calls_in_a_step: int = 1  # at most
    stride: int = 1  # of the tokens that are looked at
    least_tokens: int = 0
    turns: int = 1
    histories: dict[tuple[Branch, int], History] = field(default_factory=dict)
    _observed: dict[Structure, ObservedRegions] = field(default_factory=dict)  # of all shapes of the model
    _branches: set[Branch] = field(default_factory=set)  # in all generations
    _draws: torch.Generator = field(default_factory=torch.Generator)
    _turn: int = -1  # of the present generation
    _fitted: Any = None
    _call: CountedCall = _NO_CALL

    def look_less(self, generations: int) -> None:
        """Slow generations that users wait for down by a few per cent only: few tokens, a part of the regions in each.

        Args:
            generations: How many will be measured.
        """
        self.memory_bytes, self.least_tokens, self.turns = _FEW_BYTES, _FEW_TOKENS, min(_TURNS, generations)

    @property
    def wants_carries(self) -> bool:
        """Scores of tokens are made of the carries."""
        return bool(self.prune_scores)

    def start(self, structure: Structure) -> None:
        """Learn the regions that are seen from here on, in another shape as well.

        Raises:
            Miss: The call has another structure, as where guidance leaves layers out: it is not measured.
            OptionError: The model is shared by processes that were not named.
        """
        if structure is self.structure:
            return
        if self.structure is not None and self.structure.fingerprint != structure.fingerprint:
            raise Miss(
                "structure",
                f"a call has {len(structure.regions)} regions where the first had {len(self.structure.regions)} "
                "(layers that are left out, an adapter?); it is not measured, and runs without a plan later too",
            )
        if structure.collectives and isinstance(self.ranks, Alone):
            raise OptionError(
                "several processes share this model, and each sees a part of every value: calibrate it with "
                "model_group=, their process group, plan on one with soda_compile.plan(..., process_group=), and pass "
                "that plan to accelerate or to the backend"
            )
        if not structure.regions:
            raise SensitivityError("no region was found in this model; soda_compile.inspect(model, ...) says why")
        self.structure = structure
        if structure not in self._observed:
            self._observed[structure] = ObservedRegions.of(structure, self.wants_carries)

    def begin(self, seed: int) -> None:
        """Begin a generation; the random score draws the same for the same seed."""
        self._draws.manual_seed(_DRAWS + seed)
        self._turn = (self._turn + 1) % self.turns
        self.clock.begin()

    def begin_call(self, inputs: Mapping[str, Any]) -> None:
        """Place the call in the trajectory."""
        call = self.counter.count(self.clock)
        if call.trajectory != self._call.trajectory:
            self.inputs.clear()
            self.histories.clear()
        self._call = call
        self._branches.add(call.branch)
        self.calls_in_a_step = max(self.calls_in_a_step, call.number + 1)
        self._fit_stride()
        if call.number == 0:
            self.inputs.append(
                {name: number for name, value in inputs.items() if (number := number_of(value)) is not None}
            )

    @property
    def steps(self) -> int:
        """Steps of the present trajectory so far."""
        return self._call.step + 1

    @property
    def width(self) -> int:
        """Entries that are scored for each metric: those of ``entries``, then those of pruning."""
        return len(self.entries.weights) + math.prod(self._prune_shape)

    @property
    def _regions(self) -> ObservedRegions:
        assert self.structure is not None, "start comes before the calls"
        return self._observed[self.structure]

    @property
    def _prune_shape(self) -> tuple[int, int, int]:
        return len(self.prune_scores), self.entries.max_interval, len(PRUNE_RATES)

    def split(self, values: Floats) -> dict[str, Floats]:
        """Return entries in the last axis as tables: those of ``entries``, and prune.<score> [..., W, rates]."""
        predicted, pruned = np.split(values, [len(self.entries.weights)], axis=-1)
        tables = np.moveaxis(pruned.reshape(*values.shape[:-1], *self._prune_shape), -3, 0)
        named = {f"prune.{score}": table for score, table in zip(self.prune_scores, tables, strict=True)}
        return {**self.entries.split(predicted), **named}

    def _fit_stride(self) -> None:
        """Subsample the tokens until the histories of all branches fit; done again where a new call needs more."""
        needs = (self.structure, len(self._branches))
        if needs == self._fitted:
            return
        self._fitted = needs
        least = self._peak_bytes(2**62)
        limit = max(self.memory_bytes, least * self.least_tokens)
        if least > limit:
            raise SensitivityError(
                f"memory_bytes is {self.memory_bytes}, but past values of one token of each region take {least}; "
                "pass at least that, or a smaller max_interval"
            )
        stride = max(self.stride, math.ceil(self._peak_bytes(1) / limit))
        while self._peak_bytes(stride) > limit:
            stride += 1
        stride = self.ranks.largest(stride)
        if stride != self.stride:
            self.stride = stride
            self.histories.clear()  # values at the old stride cannot be compared

    def _peak_bytes(self, stride: int) -> int:
        history = self._empty_history()
        regions = self._regions.regions
        total = sum(history.peak_bytes(*region.shapes, region.samples, stride) for region in regions)
        return total * max(self.counter.calls_per_step, len(self._branches))

    def _empty_history(self) -> History:
        return History(self.entries.lags, self.entries.max_interval if "drift" in self.prune_scores else 0)

    def record(self, region: int, values: Mapping[str, torch.Tensor]) -> None:
        """Score all predictions of one region against its present value, and keep that value, if it has its turn."""
        if region % self.turns != max(self._turn, 0):
            return
        step, branch = self._call.step, self._call.branch
        observed = self._regions.regions[region]
        cuts = [values[cut.node] for cut in observed.region.cuts]

        def subsample(group: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            return [subsample_tokens(value, observed.samples, self.stride) for value in group]

        present = subsample(observed.samples_first(cuts))
        carries = subsample([values[node.name] for node in observed.carries])
        history = self.histories.setdefault((branch, region), self._empty_history())
        if history.reach(step):
            head = observed.head
            weights = residual_weight(head, cuts, [values[name] for name in head.others])
            kept = subsample(observed.samples_first(weights)) if weights else ()
            groups = history.token_groups(present, kept, carries)
            products, square = prediction_products(self.entries, groups)
            if self.prune_scores:
                products = np.concatenate([products, self._prune(observed, groups)], axis=-1)
            share = sum(value.numel() for value in present) / sum(cut.numel() for cut in cuts)
            sums = self._sums(products, square, observed.residual_square(values) * share)
            errors = errors_of(*sums)
            self.moments.setdefault((step, region), Moments(*errors.shape[1:])).add(errors)
        if region == 0 and step == 0:
            self.samples += self._regions.batch
        history.keep(step, present, carries)

    def _sums(self, *parts: Floats) -> list[Floats]:
        """Add up sums over the elements of a value, whose parts several processes have."""
        flat = self.ranks.sum(np.concatenate([part.ravel() for part in parts]))
        ends = np.cumsum([part.size for part in parts])[:-1]
        return [whole.reshape(part.shape) for whole, part in zip(np.split(flat, ends), parts, strict=True)]

    def _prune(self, observed: ObservedRegion, groups: Sequence[TokenGroup]) -> Floats:
        """Return products of the changes that pruning leaves, [3, samples, scores * W * rates]; NaN where it cannot."""
        products = np.full((3, observed.samples, *self._prune_shape), np.nan)
        if all(group.carry is not None for group in groups):
            longest = longest_groups(observed.region, groups)
            pruned = pruned_products(longest, self.prune_scores, self.entries.max_interval, self._draws)
            products[..., : pruned.shape[3], :] = pruned.cpu().numpy()
        return products.reshape(3, observed.samples, -1)


def number_of(value: Any) -> float | None:
    """Return the number that an input holds, if all its elements are the same one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, torch.Tensor) and value.ndim <= 1 and value.numel():
        first = value.flatten()[0]
        return float(first) if bool((value == first).all()) else None
    return None
