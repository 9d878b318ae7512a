"""Multivariate noise normalisation."""

from __future__ import annotations

import numpy as np

MODES = ("time", "epochs")
RULES = ("fixed", "ledoit-wolf")


def residuals(signals: np.ndarray, group: np.ndarray) -> np.ndarray:
    """What repetitions of the same stimulus to the same subject differ by.

    Deviations from the mean of the group, scaled by sqrt(n / (n - 1)) so that their variance is
    that of the noise; deviations from the mean of all where nothing was repeated.

    Parameters
    ----------
    signals
        (N, C, T)
    group
        (N,) int, 0 to G - 1.
    """
    count = np.bincount(group)[group]
    if not np.any(count > 1):
        return signals - signals.mean(axis=0)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    means = np.add.reduceat(signals[order], starts, axis=0)
    found = signals - means[group] / count[:, None, None]
    found *= np.sqrt(count / np.maximum(count - 1, 1))[:, None, None]
    return found


def noise_covariance(noise: np.ndarray, mode: str = "time") -> np.ndarray:
    """Covariance (C, C) of noise (N, C, T).

    Parameters
    ----------
    mode
        ``time``: over trials at each sample, averaged over samples; the mean is that of trials.
        ``epochs``: over the samples of each trial, averaged over trials; the mean is that of the
        trial, so slow offsets between trials do not count.

    References
    ----------
    Guggenmos, Sterzer, Cichy, "Multivariate pattern analysis for MEG: a comparison of dissimilarity
    measures", NeuroImage 2018.
    """
    if mode == "epochs":
        noise = noise - noise.mean(axis=2, keepdims=True)
    flat = noise.transpose(1, 0, 2).reshape(noise.shape[1], -1)
    scale = float(np.abs(flat).max()) or 1.0
    flat = flat / scale
    return (flat @ flat.T).astype(np.float64) / flat.shape[1] * scale**2


def ledoit_wolf_weight(noise: np.ndarray, covariance: np.ndarray) -> float:
    """Weight of the scaled identity that minimises the expected squared error of the covariance.

    Samples are taken as independent; for autocorrelated EEG the weight is a lower bound.

    Parameters
    ----------
    noise
        (N, C, T), mean zero.
    covariance
        (C, C) of it.

    References
    ----------
    Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal
    of Multivariate Analysis 2004.
    """
    channels = len(covariance)
    scale = float(np.abs(noise).max()) or 1.0
    flat = noise.transpose(0, 2, 1).reshape(-1, channels) / scale
    observed = covariance / scale**2
    mean = np.trace(observed) / channels
    spread = ((observed - mean * np.eye(channels)) ** 2).sum()
    fourth = float(((flat.astype(np.float64) ** 2).sum(axis=1) ** 2).mean())
    error = (fourth - (observed**2).sum()) / len(flat)
    return float(np.clip(error / spread, 0.0, 1.0)) if spread > 0 else 1.0


def inverse_root(covariance: np.ndarray, shrinkage: float) -> np.ndarray:
    """Inverse square root (C, C) float32 of a covariance shrunk towards the scaled identity."""
    mean = np.trace(covariance) / len(covariance)
    shrunk = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(shrunk)
    values = np.maximum(values, 1e-12 * values.max())
    return (vectors @ np.diag(values**-0.5) @ vectors.T).astype(np.float32)


def fit_whitening(
    signals: np.ndarray,
    group: np.ndarray,
    who: np.ndarray,
    *,
    mode: str = "time",
    shrinkage: float = 0.01,
    rule: str = "fixed",
) -> dict[str, np.ndarray]:
    """Whitening matrix of each ``who`` (subject, or subject and session), and of ``other``.

    Parameters
    ----------
    signals
        (N, C, T) single training trials.
    group
        (N,) int: repetitions of one stimulus to one subject. Only those within a ``who`` are
        compared, where there are any.
    who
        (N,) str.
    mode
        See :func:`noise_covariance`.
    shrinkage, rule
        ``fixed`` uses this weight; ``ledoit-wolf`` estimates it and takes the larger of the two.
    """
    together = np.unique(np.char.add(group.astype(str), who), return_inverse=True)[1].reshape(-1)
    if np.any(np.bincount(together) > 1):
        group = together
    noise = residuals(signals, group)
    covariances, weights = {}, {}
    for name in np.unique(who):
        mine = noise[who == name]
        covariances[str(name)] = noise_covariance(mine, mode)
        weights[str(name)] = shrinkage
        if rule == "ledoit-wolf":
            estimated = ledoit_wolf_weight(mine, covariances[str(name)])
            weights[str(name)] = max(shrinkage, estimated)
    covariances["other"] = np.mean(list(covariances.values()), axis=0)
    weights["other"] = float(np.mean(list(weights.values())))
    return {name: inverse_root(matrix, weights[name]) for name, matrix in covariances.items()}
