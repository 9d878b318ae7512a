"""Figures of an encoder: retrieval and category, beside the same with shuffled EEG."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def retrieval(found: Tensor, gallery: Tensor, target: Tensor) -> dict[str, float]:
    """Top-1 and top-5 of the right stimulus among all stimuli of the gallery.

    Parameters
    ----------
    found
        (N, P) embeddings from EEG.
    gallery
        (S, P) embeddings of the stimuli's pictures.
    target
        (N,) the right row of the gallery.

    Returns
    -------
    dict
        ``top1``, ``top5``, their chance levels, and the size of the gallery.
    """
    similarity = F.normalize(found, dim=1) @ F.normalize(gallery, dim=1).T
    own = similarity.gather(1, target[:, None])
    rank = (similarity > own).sum(dim=1)
    size = len(gallery)
    return {
        "top1": float((rank < 1).float().mean()),
        "top5": float((rank < 5).float().mean()),
        "chance_top1": 1 / size,
        "chance_top5": min(1.0, 5 / size),
        "gallery": size,
    }


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
    stimuli: np.ndarray,
    labels: np.ndarray,
    gallery: dict[str, Tensor],
    train_embeddings: Tensor,
    train_labels: np.ndarray,
    *,
    n_categories: int,
    seed: int = 0,
    protocol: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Figures of EEG embeddings, inductive: no statistics of the test set are used.

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
        K
    seed
        Of the shuffle.
    protocol
        Kept in the result: split, repetitions, SNR.

    Returns
    -------
    dict
        ``eeg`` and ``shuffled`` (EEG of one trial scored as another's: the control), each with
        ``retrieval``, ``category_top1`` (nearest class mean), ``category_nearest_picture`` (nearest
        training picture) and ``cosine``; ``trials``, ``protocol``, ``tier``.
    """
    mean = train_embeddings.mean(dim=0)
    ids = sorted(gallery)
    row = {name: number for number, name in enumerate(ids)}
    pictures = torch.stack([gallery[name] for name in ids]) - mean
    target = torch.tensor([row[str(name)] for name in stimuli])
    truth = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    train_truth = torch.from_numpy(np.asarray(train_labels, dtype=np.int64))
    centres = category_centres(train_embeddings, train_truth, n_categories) - mean

    def score(embeddings: Tensor) -> dict[str, Any]:
        return {
            "retrieval": retrieval(embeddings, pictures, target),
            "category_top1": nearest_category(embeddings, centres, truth),
            "category_nearest_picture": nearest_category(
                embeddings, train_embeddings - mean, truth, train_truth
            ),
            "cosine": float(F.cosine_similarity(embeddings, pictures[target]).mean()),
        }

    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return {
        "tier": "inductive",
        "trials": len(found),
        "categories": n_categories,
        "chance_category_top1": 1 / n_categories,
        "eeg": score(found - mean),
        "shuffled": score((found - mean)[order]),
        "protocol": protocol or {},
    }
