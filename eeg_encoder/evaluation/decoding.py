"""Figures of EEG embeddings: retrieval, category and cosine, beside a shuffled control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .retrieval import n_way, retrieval, similarities, targets
from .tiers import TIERS


def nearest_category(
    found: Tensor, references: Tensor, labels: Tensor, categories: Tensor | None = None
) -> float:
    """Share of rows whose most similar reference has their own category.

    Parameters
    ----------
    found
        (N, P)
    references
        (K, P) embeddings made of *training* pictures: class means, or the pictures themselves.
    labels
        (N,) int64.
    categories
        (K,) int64 category of each reference; default 0, 1, … for class means.
    """
    similarity = F.normalize(found, dim=1) @ F.normalize(references, dim=1).T
    nearest = similarity.argmax(dim=1)
    answers = nearest if categories is None else categories[nearest]
    return float((answers == labels).float().mean())


def category_centres(embeddings: Tensor, labels: Tensor, n: int) -> Tensor:
    """Mean embedding (n, P) of each category; zero for one without pictures."""
    sums = torch.zeros(n, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / torch.bincount(labels, minlength=n).clamp_min(1)[:, None]


def evaluate(
    found: Tensor,
    stimuli: Sequence[str] | np.ndarray,
    labels: np.ndarray,
    gallery: Mapping[str, Tensor],
    train_embeddings: Tensor,
    train_labels: np.ndarray,
    *,
    n_categories: int,
    seed: int = 0,
    protocol: dict[str, Any] | None = None,
    gallery_kind: str = "exact test pictures",
) -> dict[str, Any]:
    """Figures of EEG embeddings.

    Parameters
    ----------
    found
        (N, P) EEG embeddings of test trials.
    stimuli, labels
        (N,) picture id and category of each.
    gallery
        Picture embedding (P,) of every test stimulus.
    train_embeddings, train_labels
        (M, P) and (M,): the training pictures. Their mean is subtracted from everything.
    n_categories
        Categories that labels can name; only those with training pictures are answers.
    seed
        Of the shuffle.
    protocol
        Kept in the result: split, repetitions, SNR.
    gallery_kind
        What the gallery is made of.

    Returns
    -------
    dict
        ``eeg`` and ``shuffled`` (EEG of one trial scored as another's: the control), each with
        ``retrieval``, ``n_way``, ``category_top1`` (nearest class mean),
        ``category_nearest_picture`` (nearest training picture) and ``cosine``, all inductive;
        ``transductive``, retrieval of ``eeg`` in each of the other tiers; ``trials``, ``protocol``,
        ``tier``.
    """
    mean = train_embeddings.mean(dim=0)
    ids = sorted(gallery)
    pictures = torch.stack([gallery[name] for name in ids]) - mean
    target = targets([str(name) for name in stimuli], ids)
    truth = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    train_truth = torch.from_numpy(np.asarray(train_labels, dtype=np.int64))
    known = torch.unique(train_truth)
    centres = category_centres(train_embeddings, train_truth, n_categories)[known] - mean

    def score(embeddings: Tensor) -> dict[str, Any]:
        scores = similarities(embeddings, pictures)
        return {
            "retrieval": retrieval(scores, target, kind=gallery_kind),
            "n_way": n_way(scores, target),
            "category_top1": nearest_category(embeddings, centres, truth, known),
            "category_nearest_picture": nearest_category(
                embeddings, train_embeddings - mean, truth, train_truth
            ),
            "cosine": float(F.cosine_similarity(embeddings, pictures[target]).mean()),
        }

    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    eeg = found - mean
    return {
        "tier": "inductive",
        "trials": len(found),
        "categories": len(known),
        "chance_category_top1": 1 / len(known),
        "eeg": score(eeg),
        "shuffled": score(eeg[order]),
        "transductive": {
            name: {
                "uses": tier.uses,
                **retrieval(tier.scores(eeg, pictures), target, kind=gallery_kind),
            }
            for name, tier in TIERS.items()
            if name != "inductive"
        },
        "protocol": protocol or {},
    }
