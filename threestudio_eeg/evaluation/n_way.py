"""n-way top-k accuracy, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import hypergeom

from eeg_encoder.errors import InputError


def n_way_accuracy(scores: Any, target: int, *, ways: int, top: int = 1) -> float:
    r"""Mean chance that the right candidate is among the ``top`` of ``ways`` candidates.

    The published measure draws the other ``ways - 1`` candidates at random, many times. Its
    expectation needs no draws: with h of the M - 1 others ahead of the right one, the number drawn
    from among those h is hypergeometric, and at most ``top - 1`` of them may be.

    Parameters
    ----------
    scores
        (V, M) scores of M candidates in V views, more is better; ties count against.
    target
        Row of the right candidate.
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
    table = np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores, np.float64)
    n_candidates = table.shape[-1]
    if not 2 <= ways <= n_candidates:
        raise InputError("n-way accuracy", "ways", ways, f"2 to {n_candidates}, the candidates")
    if not 1 <= top < ways:
        raise InputError("n-way accuracy", "top", top, f"1 to {ways - 1}")
    ahead = (table >= table[:, target : target + 1]).sum(axis=1) - 1
    return float(hypergeom.cdf(top - 1, n_candidates - 1, ahead, ways - 1).mean())
