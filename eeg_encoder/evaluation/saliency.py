"""When and where: what an encoder's answer rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class OverTime:
    """A figure for each window: centres and values (W,), and how it is with the whole trial."""

    seconds: Tensor
    values: Tensor
    whole: float
    chance: float


def over_time(
    figure: Callable[[Tensor], float],
    signals: Tensor,
    sfreq: float,
    *,
    tmin: float = 0.0,
    width: float = 0.1,
    step: float = 0.05,
    chance: float = 0.0,
) -> OverTime:
    """A figure of signals of which only a sliding window is left; all else is zero.

    Parameters
    ----------
    figure
        Of preprocessed signals (N, C, T), for example the top-1 of a trained encoder.
    signals
        (N, C, T), preprocessed: zero is the median of each channel.
    sfreq, tmin
        Hertz; seconds from the onset of the stimulus to the first sample.
    width, step
        Seconds.
    chance
        Kept.
    """
    samples = signals.shape[2]
    size = max(1, round(width * sfreq))
    starts = range(0, max(1, samples - size + 1), max(1, round(step * sfreq)))
    seconds, values = [], []
    for start in starts:
        kept = torch.zeros_like(signals)
        kept[:, :, start : start + size] = signals[:, :, start : start + size]
        seconds.append(tmin + (start + size / 2) / sfreq)
        values.append(figure(kept))
    return OverTime(torch.tensor(seconds), torch.tensor(values), figure(signals), chance)


def saliency(
    encoder: nn.Module, signals: Tensor, subjects: Tensor, target: Tensor, *, batch: int = 128
) -> Tensor:
    r"""Share (C, T) of each sample in the cosine to the right picture.

    Mean over trials of :math:`|x \, \partial \cos(f(x), z) / \partial x|`, gradient times input,
    divided by its sum.

    Parameters
    ----------
    encoder
        Signals (B, C, T) and subjects (B,) to embeddings (B, P).
    signals, subjects, target
        (N, C, T) preprocessed, (N,), and the pictures' embeddings (N, P).
    """
    encoder.eval()
    total = torch.zeros_like(signals[0])
    for x, s, z in zip(
        signals.split(batch), subjects.split(batch), target.split(batch), strict=True
    ):
        x = x.detach().clone().requires_grad_()
        cosine = F.cosine_similarity(encoder(x, s), z.to(x)).sum()
        (gradient,) = torch.autograd.grad(cosine, x)
        total += (x * gradient).detach().abs().sum(dim=0)
    return total / total.sum().clamp_min(1e-30)
