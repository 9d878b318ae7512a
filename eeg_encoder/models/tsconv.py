"""Temporal, then spatial convolution: the encoder of NICE."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from . import register
from .base import Encoder
from .layers import ResidualHead


@register("tsconv")
class TSConv(Encoder):
    """Temporal filters, pooling, spatial filters, projector.

    .. rubric:: Architecture

    :class:`TemporalSpatial`, then a residual projector of width ``hidden`` to (B, P). With 250
    samples the convolutions leave 1,440 features.

    Parameters
    ----------
    channels, samples, embedding, subjects, subject_layer, electrodes, virtual
        As in :class:`eeg_encoder.models.base.Encoder`.
    filters, kernel, pool, stride, dropout
        As in :class:`TemporalSpatial`.
    hidden
        Width of the projector.

    References
    ----------
    Song et al., "Decoding Natural Images from EEG for Object Recognition" (NICE), ICLR 2024.
    """

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        filters: int = 40,
        kernel: int = 25,
        pool: int = 51,
        stride: int = 5,
        dropout: float = 0.5,
        hidden: int = 1024,
        **front: Any,
    ) -> None:
        super().__init__(channels, samples, embedding, subjects, **front)
        self.convolutions = TemporalSpatial(
            self.channels, samples, filters, kernel, pool, stride, dropout
        )
        self.head = ResidualHead(self.convolutions.features, hidden, embedding, dropout)

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """(B, filters, steps)."""
        return self.convolutions(signals)


class TemporalSpatial(nn.Module):
    """Convolution over time, average pooling, convolution over electrodes.

    (B, C, T) to (B, filters, steps), steps = (T - kernel + 1 - pool) // stride + 1; batch
    normalisation and ELU after the pooling and after the spatial filters.

    Parameters
    ----------
    channels, samples
        C and T.
    filters
        Temporal filters, and spatial filters.
    kernel, pool, stride
        Samples.
    dropout
        After the spatial filters.

    Raises
    ------
    InputError
        When the signals are shorter than kernel and pool together.
    """

    def __init__(
        self,
        channels: int,
        samples: int,
        filters: int,
        kernel: int,
        pool: int,
        stride: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if samples < kernel + pool - 1:
            raise InputError("model", "samples", samples, f"at least {kernel + pool - 1}")
        self.features = filters * ((samples - kernel + 1 - pool) // stride + 1)
        self.layers = nn.Sequential(
            nn.Conv2d(1, filters, (1, kernel)),
            nn.AvgPool2d((1, pool), (1, stride)),
            nn.BatchNorm2d(filters),
            nn.ELU(),
            nn.Conv2d(filters, filters, (channels, 1)),
            nn.BatchNorm2d(filters),
            nn.ELU(),
            nn.Dropout(dropout),
            nn.Conv2d(filters, filters, 1),
        )

    def forward(self, signals: Tensor) -> Tensor:
        """(B, C, T) to (B, filters, steps)."""
        return self.layers(signals[:, None])[:, :, 0]
