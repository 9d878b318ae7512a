"""Post-processing that looks at the whole test set: figures of another kind.

An inductive figure scores each trial by itself. The others use what a decoder of single trials
does not have, and are never in a table with inductive ones without their name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .retrieval import similarities


class Tier(NamedTuple):
    """Scores (N, S) of embeddings (N, P) and gallery (S, P), and what they make use of."""

    uses: str
    scores: Callable[[Tensor, Tensor], Tensor]


def whitened(found: Tensor, gallery: Tensor, shrinkage: float = 0.1) -> Tensor:
    """Cosines after whitening embeddings and gallery, each by their own mean and covariance."""
    return similarities(_whitened(found, shrinkage), _whitened(gallery, shrinkage))


def csls(found: Tensor, gallery: Tensor, neighbours: int = 10) -> Tensor:
    """Twice the cosine, minus the mean cosine of each side's nearest neighbours.

    Pictures that are near to everything (hubs) lose.

    References
    ----------
    Lample et al., "Word translation without parallel data", ICLR 2018, equation 3.
    """
    cosine = similarities(found, gallery)
    of_trial = cosine.topk(min(neighbours, cosine.shape[1]), dim=1).values.mean(1, keepdim=True)
    of_picture = cosine.topk(min(neighbours, cosine.shape[0]), dim=0).values.mean(0, keepdim=True)
    return 2 * cosine - of_trial - of_picture


def assigned(found: Tensor, gallery: Tensor) -> Tensor:
    """Cosines, the picture of the best one-to-one assignment moved to the first place.

    With several trials a picture, each gets as many places as there are trials a picture on
    average, rounded up.
    """
    from scipy.optimize import linear_sum_assignment

    cosine = similarities(found, gallery)
    places = -(-cosine.shape[0] // cosine.shape[1])
    repeated = cosine.repeat(1, places).double().cpu().numpy()
    row, place = linear_sum_assignment(repeated, maximize=True)
    chosen = cosine.clone()
    chosen[torch.from_numpy(row), torch.from_numpy(place % cosine.shape[1])] += 4.0
    return chosen


def _whitened(x: Tensor, shrinkage: float) -> Tensor:
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    level = covariance.diagonal().mean().clamp_min(1e-12)
    covariance = (1 - shrinkage) * covariance + shrinkage * level * torch.eye(len(covariance)).to(
        covariance
    )
    values, vectors = torch.linalg.eigh(covariance)
    return centred @ (vectors / values.sqrt()) @ vectors.T


TIERS: dict[str, Tier] = {
    "inductive": Tier("one trial at a time", similarities),
    "whitened": Tier("unlabelled test EEG and the gallery's statistics", whitened),
    "csls": Tier("unlabelled test EEG: neighbours among all test trials", csls),
    "assigned": Tier("that every test picture was shown equally often", assigned),
}
"""Tiers by name; all but the first are transductive."""
