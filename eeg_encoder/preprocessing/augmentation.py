"""Random changes of training signals; the deterministic transform is :class:`Preprocessing`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Augmentation:
    """Random changes of preprocessed training signals.

    Parameters
    ----------
    channel_dropout
        Probability that a channel is silenced.
    shift
        Largest shift in time, samples, either way; the ends are filled with zeros.
    noise
        Standard deviation of added noise, in units of the z-scored signal.
    amplitude
        Standard deviation of the logarithm of a trial's gain.
    """

    channel_dropout: float = 0.1
    shift: int = 2
    noise: float = 0.1
    amplitude: float = 0.0

    def __call__(self, signals: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, T) to (B, C, T)."""
        b, c, t = signals.shape
        device = signals.device

        def uniform(*size: int) -> Tensor:
            return torch.rand(*size, device=device, generator=generator)

        if self.shift:
            step = (uniform(b) * (2 * self.shift + 1)).long() - self.shift
            source = torch.arange(t, device=device) - step[:, None]
            inside = (source >= 0) & (source < t)
            index = source.clamp(0, t - 1)[:, None].expand(b, c, t)
            signals = signals.gather(2, index) * inside[:, None]
        if self.noise:
            white = torch.randn(b, c, t, device=device, generator=generator)
            signals = signals + self.noise * white
        if self.channel_dropout:
            signals = signals * (uniform(b, c, 1) >= self.channel_dropout)
        if self.amplitude:
            gain = torch.randn(b, 1, 1, device=device, generator=generator)
            signals = signals * (self.amplitude * gain).exp()
        return signals


def mix_repetitions(
    signals: Tensor, present: Tensor, generator: torch.Generator, concentration: float = 1.0
) -> Tensor:
    """A random convex combination of the repetitions of each stimulus.

    Weights are Dirichlet(``concentration``, ...) over the repetitions that are there: 1 is uniform
    over all combinations, large values approach the mean, small ones single trials.

    Parameters
    ----------
    signals
        (B, R, C, T)
    present
        (B, R) bool; at least one in each row.
    generator
        On the signals' device.

    Returns
    -------
    Tensor
        (B, C, T)
    """
    shape = torch.full(present.shape, concentration, device=signals.device)
    # torch._standard_gamma takes a generator; torch.distributions does not
    draws = torch._standard_gamma(shape, generator).clamp_min(1e-12) * present
    weights = draws / draws.sum(dim=1, keepdim=True)
    return torch.einsum("br,brct->bct", weights.to(signals.dtype), signals)
