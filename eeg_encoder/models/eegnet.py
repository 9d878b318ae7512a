"""EEGNet: compact depthwise and separable convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from . import register
from .base import Encoder


@register("eegnet")
class EEGNet(Encoder):
    """EEGNet-``filters``,``depth`` with a linear head.

    .. rubric:: Architecture

    1. ``filters`` temporal convolutions of ``kernel`` samples, batch normalisation.
    2. ``depth`` spatial filters for each (depthwise, norm at most 1), batch normalisation, ELU,
       average over 4 samples, dropout.
    3. Separable convolution of 16 samples to filters x depth maps, batch normalisation, ELU,
       average over 8 samples, dropout.
    4. Linear to (B, P).

    Parameters
    ----------
    channels, samples, embedding, subjects, subject_layer, electrodes, virtual
        As in :class:`eeg_encoder.models.base.Encoder`.
    filters, depth
        F1 and D of the paper.
    kernel
        Samples; half the sampling rate in the paper.
    dropout
        0.5 within subjects, 0.25 across, in the paper.

    References
    ----------
    Lawhern et al., "EEGNet: a compact convolutional neural network for EEG-based brain-computer
    interfaces", Journal of Neural Engineering 2018.
    """

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        filters: int = 8,
        depth: int = 2,
        kernel: int = 64,
        dropout: float = 0.5,
        **front: Any,
    ) -> None:
        super().__init__(channels, samples, embedding, subjects, **front)
        if samples < 32:
            raise InputError("model", "samples", samples, "at least 32")
        maps = filters * depth
        self.temporal = nn.Conv2d(1, filters, (1, kernel), padding="same", bias=False)
        self.norm_1 = nn.BatchNorm2d(filters)
        self.spatial = nn.Parameter(torch.empty(maps, 1, self.channels, 1))
        nn.init.kaiming_uniform_(self.spatial, a=5**0.5)
        self.groups = filters
        self.norm_2 = nn.BatchNorm2d(maps)
        self.separable = nn.Sequential(
            nn.Conv2d(maps, maps, (1, 16), padding="same", groups=maps, bias=False),
            nn.Conv2d(maps, maps, 1, bias=False),
        )
        self.norm_3 = nn.BatchNorm2d(maps)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(maps * (samples // 4 // 8), embedding))

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """(B, maps, steps)."""
        x = self.norm_1(self.temporal(signals[:, None]))
        filters = torch.renorm(self.spatial, 2, 0, 1.0)
        x = F.elu(self.norm_2(F.conv2d(x, filters, groups=self.groups)))
        x = self.drop(F.avg_pool2d(x, (1, 4)))
        x = F.elu(self.norm_3(self.separable(x)))
        return self.drop(F.avg_pool2d(x, (1, 8)))[:, :, 0]
