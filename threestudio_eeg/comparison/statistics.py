"""Statistics of figures that were taken on the same trials under several conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eeg_encoder.errors import InputError

N_DRAWS = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` trials, its standard error, and the bootstrap interval around it."""

    mean: float
    se: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference:
    """One condition minus another over the ``n`` trials that both have.

    ``low`` and ``high`` bound the mean difference (paired bootstrap). ``wilcoxon`` is the p-value
    of Wilcoxon's signed-rank test, ``sign`` of the exact sign test; both are two-sided, and 1 where
    no trial differs. ``adjusted`` is Holm's adjustment of ``wilcoxon``, see :func:`holm`. ``more``,
    ``less`` and ``equal`` count trials.
    """

    mean: float
    low: float
    high: float
    wilcoxon: float
    sign: float
    more: int
    less: int
    equal: int
    n: int
    adjusted: float | None = None


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Mean of one value a trial, with a percentile bootstrap over trials.

    Raises
    ------
    InputError
        When there are no values.
    """
    sample = _finite(values)
    spread = float(sample.std(ddof=1)) if len(sample) > 1 else 0.0
    low, high = bootstrap_interval(sample, seed=seed)
    return Estimate(float(sample.mean()), spread / len(sample) ** 0.5, low, high, len(sample))


def compare_pairs(
    first: Mapping[str, float], second: Mapping[str, float], *, seed: int = 0
) -> Difference:
    """Compare two conditions on the trials that both have.

    Parameters
    ----------
    first, second
        One value a trial. Several seeds of a trial are to be averaged before: they are no
        independent trials.
    seed
        Of the bootstrap.

    Raises
    ------
    InputError
        When no trial is in both.
    """
    shared = sorted(set(first) & set(second))
    differences = _finite([first[trial] - second[trial] for trial in shared])
    low, high = bootstrap_interval(differences, seed=seed)
    more, less = int((differences > 0).sum()), int((differences < 0).sum())
    moved = more + less
    return Difference(
        mean=float(differences.mean()),
        low=low,
        high=high,
        wilcoxon=float(stats.wilcoxon(differences).pvalue) if moved else 1.0,
        sign=float(stats.binomtest(more, moved).pvalue) if moved else 1.0,
        more=more,
        less=less,
        equal=len(differences) - moved,
        n=len(differences),
    )


def bootstrap_interval(
    values: np.ndarray, *, n_draws: int = N_DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean when trials (N,) are drawn again with replacement.

    References
    ----------
    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    random = np.random.default_rng(seed)
    rows = random.integers(0, len(values), size=(n_draws, len(values)))
    tail = (1 - level) / 2
    low, high = np.quantile(values[rows].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of a family of tests so that its error rate holds (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, running)
    return [float(value) for value in adjusted]


def _finite(values: Sequence[float]) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if not len(sample):
        raise InputError("comparison", "trials", "none", "at least one that has the figure")
    if not np.isfinite(sample).all():
        raise InputError("comparison", "figures", "NaN or infinity", "finite values")
    return sample
