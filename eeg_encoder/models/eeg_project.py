"""A two-layer perceptron on the whole trial."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import register
from .base import Encoder
from .layers import ResidualHead


@register("eeg_project")
class EEGProject(Encoder):
    """Flatten, linear, residual GELU layer, LayerNorm, linear.

    .. rubric:: Architecture

    (B, C, T) is flattened to (B, C T), which keeps every electrode and latency; a linear layer to
    ``hidden``; a residual branch of GELU, linear and dropout; LayerNorm; linear to (B, P).

    The strongest single encoder for averaged repetitions of 17 posterior channels (56.8 % against
    44.9 % for TSConv in the comparison of ATS), where 63 channels do worse.

    Parameters
    ----------
    channels, samples, embedding, subjects, subject_layer, electrodes, virtual
        As in :class:`eeg_encoder.models.base.Encoder`.
    hidden
        Width of the hidden layers.
    dropout
        In the residual branch.

    References
    ----------
    UBP: Wu et al., "Bridging the Vision-Brain Gap with an Uncertainty-Aware Blur Prior", CVPR 2025;
    NeuroBridge, AAAI 2026.
    """

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        hidden: int = 1024,
        dropout: float = 0.3,
        **front: Any,
    ) -> None:
        super().__init__(channels, samples, embedding, subjects, **front)
        self.head = ResidualHead(self.channels * samples, hidden, embedding, dropout)

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """The signals themselves."""
        return signals
