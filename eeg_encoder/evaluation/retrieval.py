"""Where the right picture stands among the pictures of a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

TOPS = (1, 5)


def similarities(found: Tensor, gallery: Tensor) -> Tensor:
    """Cosines (N, S) of embeddings (N, P) and gallery (S, P)."""
    return F.normalize(found, dim=1) @ F.normalize(gallery, dim=1).T


def hits(scores: Tensor, target: Tensor, top: int) -> Tensor:
    """(N,) chance that the right row is among the ``top`` best; ties are broken at random.

    Parameters
    ----------
    scores
        (N, S), more is better.
    target
        (N,) the right column.
    """
    ahead, tied = _ahead(scores, target)
    return ((top - ahead) / (tied + 1)).clamp(0, 1)


def retrieval(scores: Tensor, target: Tensor, *, kind: str = "exact test pictures") -> dict:
    """Top-1 and top-5 of the right stimulus among all of the gallery.

    Parameters
    ----------
    scores
        (N, S) of each trial and picture.
    target
        (N,) the right column.
    kind
        What the gallery is made of. A template of the concept is easier than the exact picture.

    Returns
    -------
    dict
        ``top1``, ``top5``, their chance levels, the size and kind of the gallery.
    """
    size = scores.shape[1]
    found: dict[str, Any] = {
        f"top{top}": float(hits(scores, target, top).mean()) for top in TOPS
    } | {f"chance_top{top}": min(1.0, top / size) for top in TOPS}
    return {**found, "gallery": size, "gallery_kind": kind}


def n_way(
    scores: Tensor, target: Tensor, *, ways: Sequence[int] = (2, 10, 50), top: int = 1
) -> dict[str, dict[str, float]]:
    r"""n-way top-k accuracy beside its chance level, k / n.

    The mean of :func:`n_way_chances`: what is level with the right one counts as ahead of it.

    Parameters
    ----------
    scores, target
        As in :func:`retrieval`.
    ways
        n; those above the size of the gallery are left out.
    top
        k

    Returns
    -------
    dict
        ``accuracy`` and ``chance`` by ``"10-way top-1"``.
    """
    if top < 1:
        raise InputError("n-way accuracy", "top", top, "1 or more")
    result = {}
    for n in ways:
        if not top < n <= scores.shape[1]:
            continue
        found = n_way_chances(scores, target, ways=n, top=top)
        accuracy = float(found.mean()) if len(found) else 0.0
        result[f"{n}-way top-{top}"] = {"accuracy": accuracy, "chance": top / n}
    return result


def n_way_chances(scores: Tensor, target: Tensor, *, ways: int, top: int = 1) -> np.ndarray:
    """(N,) chance that the right candidate is among the ``top`` of ``ways`` candidates.

    What is level with the right candidate, or not comparable with it (NaN), counts as ahead of it:
    who says nothing wins nothing. :func:`retrieval` breaks ties at random instead.

    The published measure draws the other ``ways - 1`` candidates at random, many times. Its
    expectation needs no draws: with h of the wrong ones ahead of the right one, the number drawn
    from among those h is hypergeometric, and at most ``top - 1`` of them may be.

    Parameters
    ----------
    scores, target
        As in :func:`retrieval`.
    ways, top
        n and k.

    Raises
    ------
    InputError
        When there are fewer candidates than ``ways``, or ``top`` is not below ``ways``.

    References
    ----------
    Chen et al., "Seeing beyond the brain" (MinD-Vis), CVPR 2023: n-way top-k over random trials.
    """
    from scipy.stats import hypergeom

    candidates = scores.shape[1]
    if not 2 <= ways <= candidates:
        raise InputError("n-way accuracy", "ways", ways, f"2 to {candidates}, the candidates")
    if not 1 <= top < ways:
        raise InputError("n-way accuracy", "top", top, f"1 to {ways - 1}")
    own = scores.gather(1, target[:, None])
    ahead = (~(scores < own)).sum(dim=1).cpu().numpy() - 1
    chances: np.ndarray = hypergeom.cdf(top - 1, candidates - 1, ahead, ways - 1)
    return chances


def _ahead(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How many others are ahead of the right one, and how many are level with it."""
    own = scores.gather(1, target[:, None])
    return (scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1


def targets(stimuli: Sequence[str], gallery: Sequence[str]) -> Tensor:
    """(N,) column of each stimulus in a gallery of names.

    Raises
    ------
    InputError
        For a stimulus that the gallery does not have.
    """
    column = {name: number for number, name in enumerate(gallery)}
    missing = sorted({str(name) for name in stimuli} - set(column))
    if missing:
        raise InputError("gallery", "pictures", f"no {missing[0] or 'named stimulus'}", "every one")
    return torch.tensor([column[str(name)] for name in stimuli], dtype=torch.int64)
