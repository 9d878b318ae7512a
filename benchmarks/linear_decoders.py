"""Two plain decoders for benchmarks: shrinkage LDA and nearest neighbours."""

from __future__ import annotations

import numpy as np


def lda_scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, shrinkage: float = 0.1
) -> np.ndarray:
    """Linear discriminant scores (M, K), equal priors.

    Parameters
    ----------
    train, test
        (N, D) and (M, D) features.
    labels
        (N,) class of each training row; the K classes are the sorted unique values.
    shrinkage
        Weight of the mean variance on the diagonal of the within-class covariance, 0 to 1.
    """
    classes = np.unique(labels)
    means = np.stack([train[labels == value].mean(axis=0) for value in classes])
    centred = train - means[np.searchsorted(classes, labels)]
    covariance = centred.T @ centred / len(train)
    level = np.trace(covariance) / len(covariance)
    covariance = (1 - shrinkage) * covariance + shrinkage * level * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, means.T)
    return test @ weights - 0.5 * np.sum(means.T * weights, axis=0)


def lda_accuracy(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, answers: np.ndarray
) -> float:
    """Share of test rows whose class LDA names."""
    found = np.unique(labels)[lda_scores(train, labels, test).argmax(axis=1)]
    return float(np.mean(found == answers))


def neighbour_accuracy(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, answers: np.ndarray, *, k: int = 5
) -> float:
    """Share of test rows whose class most of the k nearest training rows have."""
    distance = (test**2).sum(1)[:, None] - 2 * test @ train.T + (train**2).sum(1)
    nearest = labels[np.argpartition(distance, k, axis=1)[:, :k]]
    votes = np.stack([(nearest == value).sum(axis=1) for value in np.unique(labels)], axis=1)
    return float(np.mean(np.unique(labels)[votes.argmax(axis=1)] == answers))


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))
