"""How well signals are drawn from what an encoder sees of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import TokenEncoder


def reconstruction(
    drawn: Tensor, signals: Tensor, hidden: Tensor | None = None
) -> dict[str, float]:
    """Agreement of reconstructed and true signals, both (N, C, T).

    Parameters
    ----------
    hidden
        (N, T) bool: samples counted, those that the encoder did not see; default all.

    Returns
    -------
    dict
        ``correlation``: Pearson's, of each trial and channel over time, mean;
        ``relative_error``: squared error over the signals' variance, 1 for drawing their mean;
        ``amplitude``: standard deviation drawn over the true one.
    """
    kept = torch.ones_like(signals[:, 0]) if hidden is None else hidden.to(signals.dtype)
    weight = kept[:, None] / kept.sum(1).clamp_min(1)[:, None, None]

    def centred(x: Tensor) -> Tensor:
        return x - (x * weight).sum(2, keepdim=True)

    a, b = centred(drawn.float()), centred(signals.float())
    power_a, power_b = (weight * a**2).sum(2), (weight * b**2).sum(2)
    product = (weight * a * b).sum(2)
    error = (weight * (drawn.float() - signals.float()) ** 2).sum(2)
    return {
        "correlation": float((product / (power_a * power_b).sqrt().clamp_min(1e-12)).mean()),
        "relative_error": float(error.mean() / power_b.mean().clamp_min(1e-12)),
        "amplitude": float((power_a.mean() / power_b.mean().clamp_min(1e-12)).sqrt()),
    }


@torch.no_grad()
def encoder_reconstruction(
    encoder: nn.Module,
    signals: Tensor,
    subjects: Tensor,
    *,
    ratio: float = 0.75,
    seed: int = 0,
    batch: int = 128,
) -> dict[str, Any] | None:
    """Reconstruction of the hidden samples beside that of another trial; None without a decoder.

    Parameters
    ----------
    signals, subjects
        (N, C, T) preprocessed, and (N,), on the encoder's device.
    ratio
        Share of tokens hidden.
    seed
        Of the masks.

    Returns
    -------
    dict
        ``eeg``, ``shuffled`` (the drawn signals against the next trial's) and ``hidden``.
    """
    if not isinstance(encoder, TokenEncoder):
        return None
    encoder.eval()
    generator = torch.Generator(signals.device).manual_seed(seed)
    parts = [
        encoder.reconstruct(x, s, ratio, generator)
        for x, s in zip(signals.split(batch), subjects.split(batch), strict=True)
    ]
    drawn, hidden = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return {
        "hidden": ratio,
        "eeg": reconstruction(drawn, signals, hidden),
        "shuffled": reconstruction(drawn, signals.roll(1, 0), hidden),
    }
