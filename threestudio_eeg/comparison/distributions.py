"""Distances between sets of pictures: Fréchet, kernel, and the inception score.

The published measures use an Inception network's features. Ours are those of the pipeline's own
image tower (and, for the inception score, the phantom judge's categories), and are named so: the
numbers cannot be compared with published ones.
"""

from __future__ import annotations

import numpy as np

from eeg_encoder.errors import InputError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    r"""Fréchet distance of the normal distributions fitted to features (N, P) and (M, P).

    .. math:: \lVert\mu_a-\mu_b\rVert^2 + \mathrm{tr}\big(C_a + C_b -
              2 (C_a^{1/2} C_b C_a^{1/2})^{1/2}\big)

    Biased upwards for few pictures, more so the fewer there are.

    References
    ----------
    Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017.
    """
    a, b = _features(a), _features(b)
    root = _square_root(np.cov(a, rowvar=False))
    product = root @ np.cov(b, rowvar=False) @ root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    spread = a.var(axis=0, ddof=1).sum() + b.var(axis=0, ddof=1).sum()
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + spread - 2 * cross)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy of features (N, P), (M, P), kernel ``(x·y / P + 1)^3``.

    Unbiased, so it may be a little below zero, and fit for small sets.

    References
    ----------
    Bińkowski et al., "Demystifying MMD GANs", ICLR 2018.
    """
    a, b = _features(a), _features(b)
    n, m, width = len(a), len(b), a.shape[1]
    within_a, within_b, between = ((x @ y.T / width + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    return float(
        (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
        + (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
        - 2 * between.mean()
    )


def inception_score(probabilities: np.ndarray) -> float:
    """``exp(E KL(p(y|x) || p(y)))`` of class probabilities (N, K): 1 to K.

    High when each picture is one class for sure and all classes are shown.

    References
    ----------
    Salimans et al., "Improved techniques for training GANs", NeurIPS 2016.
    """
    p = np.clip(np.asarray(probabilities, dtype=np.float64), 1e-12, 1)
    marginal = p.mean(axis=0, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(marginal))).sum(axis=1).mean()))


def _features(values: np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise InputError("sets of pictures", "features", array.shape, "(2 or more, width)")
    return array


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """Square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(np.atleast_2d(matrix))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
