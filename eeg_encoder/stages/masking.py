"""Masked reconstruction for encoders that have no token decoder of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..models.layers import random_mask

PATCHES = 16
WIDTH, WAVEFORMS = 256, 32


def reconstructor(encoder: nn.Module) -> Any:
    """What has ``reconstruct``: the encoder itself, or a :class:`SilencedPatches` around it."""
    return encoder if hasattr(encoder, "reconstruct") else SilencedPatches(encoder)


class SilencedPatches(nn.Module):
    """Time patches set to zero, and a bilinear decoder on the encoder's features.

    A convolutional encoder cannot leave tokens out, so hidden patches are silent at its input. The
    features, through one hidden layer of 256, weigh 32 learnt waveforms for each channel. The
    decoder is thrown away after pre-training.

    Parameters
    ----------
    encoder
        An :class:`eeg_encoder.models.base.Encoder`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        weight = next(encoder.parameters())
        blank = torch.zeros(2, encoder.channels, encoder.samples, device=weight.device)
        self.channels = len(encoder.mixing.places) if encoder.mixing else encoder.channels
        training = encoder.training
        with torch.no_grad():
            features = encoder.eval().features(blank, None).flatten(1).shape[1]
        encoder.train(training)
        self.decoder = nn.Sequential(
            nn.Linear(features, WIDTH), nn.GELU(), nn.Linear(WIDTH, self.channels * WAVEFORMS)
        ).to(weight.device)
        waveforms = torch.randn(WAVEFORMS, encoder.samples) / math.sqrt(WAVEFORMS)
        self.waveforms = nn.Parameter(waveforms.to(weight.device))

    def reconstruct(
        self,
        signals: Tensor,
        subject: Tensor | None,
        ratio: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`eeg_encoder.models.base.TokenEncoder.reconstruct`."""
        b, c, t = signals.shape
        hidden = random_mask(b, PATCHES, ratio, device=signals.device, generator=generator)
        silent = hidden.repeat_interleave(-(-t // PATCHES), dim=1)[:, :t]
        heard = self.encoder.front(signals * ~silent[:, None], subject)
        features = self.encoder.features(heard, subject).flatten(1)
        weights = self.decoder(features).reshape(b, c, WAVEFORMS)
        return weights @ self.waveforms, silent
