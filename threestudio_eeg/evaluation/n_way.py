"""n-way top-k accuracy, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from eeg_encoder.errors import InputError
from eeg_encoder.evaluation.retrieval import among_the_top


def n_way_accuracy(scores: Any, target: int, *, ways: int, top: int = 1) -> float:
    """Mean chance that the right candidate is among the ``top`` of ``ways`` candidates.

    The expectation over random draws: :func:`eeg_encoder.evaluation.retrieval.among_the_top`.

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
    """
    table = np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores, np.float64)
    n_candidates = table.shape[-1]
    if not 2 <= ways <= n_candidates:
        raise InputError("n-way accuracy", "ways", ways, f"2 to {n_candidates}, the candidates")
    if not 1 <= top < ways:
        raise InputError("n-way accuracy", "top", top, f"1 to {ways - 1}")
    ahead = (table >= table[:, target : target + 1]).sum(axis=1) - 1
    return float(among_the_top(ahead, n_candidates - 1, ways=ways, top=top).mean())
