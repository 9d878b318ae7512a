"""Whitening of noise whose covariance is nearly one of channels times one of time."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 4
FLOOR = 1e-3


def separable_whitening(noise: Tensor, freedom: int, shrinkage: float) -> Tensor:
    """Return a square root W (D, D) of the inverse noise covariance, D = C T: W e is white.

    A separable covariance, channels times time, has so few parameters that a thousand trials
    determine it. In its coordinates the sample covariance is then shrunk towards the identity: what
    is not separable (alpha of one place, the 1/f of another) keeps ``1 - shrinkage`` of its weight.

    Parameters
    ----------
    noise
        (N, C, T) residuals.
    freedom
        Degrees of freedom of the residuals.
    shrinkage
        0 to 1; 1 leaves the separable covariance alone.

    References
    ----------
    Dutilleul, "The MLE algorithm for the matrix normal distribution", Journal of Statistical
    Computation and Simulation 1999 (the alternation). Ledoit, Wolf, "A well-conditioned estimator
    for large-dimensional covariance matrices", Journal of Multivariate Analysis 2004 (the
    shrinkage).
    """
    n, channels, samples = noise.shape
    share = n / freedom
    over_time = torch.eye(samples).to(noise)
    for _ in range(ROUNDS):
        white = noise @ _inverse_root(over_time).T
        over_space = share * torch.einsum("nct,ndt->cd", white, white) / (n * samples)
        white = _inverse_root(over_space) @ noise
        over_time = share * torch.einsum("nct,ncu->tu", white, white) / (n * channels)
    separable = torch.kron(_inverse_root(over_space), _inverse_root(over_time))
    white = noise.flatten(1) @ separable.T
    rest = (1 - shrinkage) * share * white.T @ white / n
    rest.diagonal().add_(shrinkage)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(rest), separable, upper=False)


def _inverse_root(covariance: Tensor) -> Tensor:
    """Lower triangular inverse of the Cholesky factor, after a small floor on the diagonal."""
    floor = FLOOR * covariance.diagonal().mean()
    factor = torch.linalg.cholesky(covariance + floor * torch.eye(len(covariance)).to(covariance))
    return torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=False)
