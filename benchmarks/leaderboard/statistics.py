"""Bootstrap confidence, paired ratios and ranks."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 2000
TINY = 1e-12


def _drawn(samples: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(samples, size=(DRAWS, samples))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean, by the bootstrap over samples."""
    array = np.asarray(values, dtype=np.float64)
    low, high = np.quantile(array[_drawn(len(array))].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def paired_ratio(values: Sequence[float], to: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of the ratios of the same samples, with its 95% interval."""
    if len(values) != len(to):
        raise ValueError(f"{len(values)} values are paired with {len(to)}")
    logs = np.log(np.maximum(values, TINY)) - np.log(np.maximum(to, TINY))
    low, high = np.quantile(logs[_drawn(len(logs))].mean(axis=1), (0.025, 0.975))
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def bootstrap_deviation(
    distance: Callable[[Floats, Floats], float], one: Floats, other: Floats, labels: int, draws: int = 200
) -> float:
    """Standard deviation of a distance between two sets of samples [n, f], by drawing both sets anew.

    Labels take turns with the seeds, so each is drawn as often as it was: how often it comes is no chance.
    """
    generator = np.random.default_rng(0)

    def drawn(samples: Floats) -> Floats:
        parts = [samples[label::labels] for label in range(labels)]
        return np.concatenate([part[generator.integers(len(part), size=len(part))] for part in parts])

    return float(np.std([distance(drawn(one), drawn(other)) for _ in range(draws)], ddof=1))


def ranks(scores: Mapping[str, float], largest_first: bool = False) -> dict[str, int]:
    """Rank of each name, from 1; equal scores share the best rank. Names without a score (NaN) have none."""
    known = {name: -score if largest_first else score for name, score in scores.items() if score == score}
    return {name: 1 + sum(other < score for other in known.values()) for name, score in known.items()}


def rank_correlation(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Spearman's correlation of two rankings over the names that both have; NaN below three or without any spread."""
    names = sorted(one.keys() & other.keys())
    if len(names) < 3:
        return float("nan")
    first, second = (np.array([ranking[name] for name in names], dtype=np.float64) for ranking in (one, other))
    if not first.std() or not second.std():
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
