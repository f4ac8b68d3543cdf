"""The steps that are timed to learn what each action of each region costs."""

from dataclasses import dataclass

import numpy as np

from soda_compile.compiler.prune_flops import prune_flops
from soda_compile.compiler.whole_stack import stack_region
from soda_compile.ir.slot_formats import FORMATS, SlotFormat, stored_bytes
from soda_compile.ir.structure import Structure
from soda_compile.measure.gram import Floats
from soda_compile.measure.profile_store import versions
from soda_compile.plans.actions import ACTIONS, COMPUTE, PRUNE_RATES, REUSE, STALE, Action, prune
from soda_compile.plans.plan import Plan
from soda_compile.plans.profile import PROFILED, Profile
from soda_compile.plans.pruning import Pruning

# The last full steps, whose values nothing reads.
UNKEPT = 3


@dataclass(frozen=True)
class Probe:
    """A step in which some regions do one thing and all others compute.

    Attributes:
        action: What they do.
        regions: Their numbers.
        paired: Whether its time is compared with that of the step before, a full one.
    """

    action: Action
    regions: frozenset[int]
    paired: bool = False


@dataclass(frozen=True, eq=False)
class Probing:
    """Steps that are probes, as a plan, and the profile that follows from their times.

    Each probe of equal regions follows a full step, and is followed by a step that reuses everything, so that what
    computes also keeps its values, as in real plans. Full steps whose values nobody needs come last.

    Attributes:
        structure: The denoiser.
        kinds: Numbers of equal regions (same name in their block, work and size), which are probed together.
        steps: The probes, in the order in which they run.
        pruning: How pruned regions pick their tokens; None without pruning.
    """

    structure: Structure
    kinds: tuple[frozenset[int], ...]
    steps: tuple[Probe, ...]
    pruning: Pruning | None

    @classmethod
    def build(cls, structure: Structure, pruning: Pruning | None) -> "Probing":
        """List the probes: reuse for every kind of region, and each rate at which pruning saves work."""
        groups: dict[object, list[int]] = {}
        for number, region in enumerate(structure.regions):
            key = (region.name, region.kind, region.flops, region.memory_bytes, region.weights)
            groups.setdefault(key, []).append(number)
        kinds = tuple(map(frozenset, groups.values()))
        everything = frozenset(range(len(structure.regions)))
        full, reuse = Probe(COMPUTE, everything), Probe(REUSE, everything)
        steps = [full] * STALE[-1].history + [Probe(action, everything) for action in reversed(STALE)]
        saves = prune_flops(structure) > 0 if pruning else np.zeros((len(everything), len(PRUNE_RATES)), dtype=bool)
        for kind in kinds:
            rates = [rate for rate, fits in zip(PRUNE_RATES, saves[min(kind)], strict=True) if fits]
            for action in (REUSE, *map(prune, rates)):
                steps += [full, reuse, full, Probe(action, kind, paired=True), reuse]
        steps += [full] * UNKEPT
        return cls(structure, kinds, tuple(steps), pruning)

    @property
    def plan(self) -> Plan:
        """The steps as a plan."""
        rows = [
            tuple(probe.action if number in probe.regions else COMPUTE for probe in self.steps)
            for number in range(len(self.structure.regions))
        ]
        prunes = any(probe.action.kind == "prune" for probe in self.steps)
        names = self.structure.region_names
        return Plan(self.structure.fingerprint, names, tuple(rows), pruning=self.pruning if prunes else None)

    def profile(self, times_us: Floats, device: str, key: str) -> Profile:
        """Split the times over the regions.

        A kind of region costs the time of a full step less that of a step where this kind alone reuses, both of the
        same round. Costs are scaled so that those of all regions add up to the difference between a full step and one
        that reuses everything, which are timed as they are: steps probed one kind at a time leave out what the
        compiler gains by joining blocks. What forecasts cost is divided by the size of what they read.

        Args:
            times_us: [rounds, steps], microseconds.
            device: See ``Profile``.
            key: See ``Profile``.
        """
        whole = {action: self._median(times_us, action) for action in ACTIONS}
        base_us = whole[REUSE]
        saved: dict[tuple[Action, frozenset[int]], float] = {
            (probe.action, probe.regions): float(np.median(times_us[:, step - 1] - times_us[:, step]))
            for step, probe in enumerate(self.steps)
            if probe.paired
        }
        total = sum(max(0.0, saved[REUSE, kind]) for kind in self.kinds)
        scale = max(0.0, whole[COMPUTE] - base_us) / total if total else 0.0
        memory = np.array([region.memory_bytes for region in self.structure.regions], dtype=np.float64)
        cost_us = np.full((len(memory), len(PROFILED)), np.nan)
        for action in STALE:
            cost_us[:, PROFILED.index(action)] = max(0.0, whole[action] - base_us) * memory / memory.sum()
        for (action, kind), saved_us in saved.items():
            left_us = saved[REUSE, kind] - (0.0 if action == REUSE else saved_us)
            column = PROFILED.index(COMPUTE if action == REUSE else action)
            cost_us[list(kind), column] = max(0.0, left_us) * scale / len(kind)
        stack = stack_region(self.structure)
        unkept = times_us[:, -UNKEPT:]
        quartiles = np.quantile(unkept, (0.25, 0.75))
        full_us = float(np.median(unkept))
        return Profile(
            fingerprint=self.structure.fingerprint,
            regions=self.structure.region_names,
            device=device,
            key=key,
            full_us=full_us,
            base_us=base_us,
            cost_us=cost_us,
            memory_bytes=memory,
            stack_bytes=stack.memory_bytes if stack is not None else None,
            rounded_bytes={name: self._stored_bytes(kept) for name, kept in FORMATS.items()},
            rounded_stack_bytes={name: stored_bytes(stack, kept) for name, kept in FORMATS.items()} if stack else {},
            score=self.pruning.score if self.pruning else None,
            spread=float(np.diff(quartiles)[0]) / full_us,
            versions=versions(),
        )

    def _stored_bytes(self, kept: SlotFormat) -> Floats:
        return np.array([stored_bytes(region, kept) for region in self.structure.regions], dtype=np.float64)

    def _median(self, times_us: Floats, action: Action) -> float:
        """Return the median time of the steps where all regions do this, and keep what they compute."""
        steps = [
            step
            for step, probe in enumerate(self.steps[:-UNKEPT])
            if probe.action == action and len(probe.regions) == len(self.structure.regions) and not probe.paired
        ]
        return float(np.median(times_us[:, steps]))
