"""n-way top-k accuracy of views of one object."""

from __future__ import annotations

from typing import Any

import torch

from eeg_encoder.evaluation.retrieval import n_way_chances


def n_way_accuracy(scores: Any, target: int, *, ways: int, top: int = 1) -> float:
    """Mean chance that the right candidate is among the ``top`` of ``ways`` candidates.

    The encoder's measure, in closed form and with its rule for ties:
    :func:`eeg_encoder.evaluation.retrieval.n_way_chances`.

    Parameters
    ----------
    scores
        (V, M) scores of M candidates in V views, more is better; ties count against.
    target
        Row of the right candidate.
    ways, top
        n and k; raises what that function raises.
    """
    table = torch.as_tensor(scores).detach()
    right = torch.full((len(table),), target, device=table.device)
    return float(n_way_chances(table, right, ways=ways, top=top).mean())
