"""What every encoder has: sizes, the optional front ends, the mean embedding."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .layers import PositionMixing, SubjectCorrection


class Encoder(nn.Module):
    """EEG (B, C, T) to image space (B, P).

    A subclass provides ``head`` and :meth:`features`; those with a token sequence and a decoder add
    ``encode`` and ``reconstruct`` (see :class:`TokenEncoder`).

    Parameters
    ----------
    channels, samples
        C and T of the signals.
    embedding
        P, width of the image-embedding space.
    subjects
        Numbers of the training subjects; empty for no subject-specific parameters.
    subject_layer
        Correct the signals of known subjects by a matrix of their own, zero at first.
    electrodes
        (C, 3) places of the electrodes on the head. Given, channels are mixed by attention over
        places (Défossez et al. 2023), and recordings with another montage can be encoded by passing
        their electrodes to :meth:`forward`.
    virtual
        Channels after that mixing; 0 for C.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    mean_embedding: Tensor
    head: nn.Module

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        subject_layer: bool = False,
        electrodes: list[list[float]] | None = None,
        virtual: int = 0,
    ) -> None:
        super().__init__()
        self.samples, self.embedding = samples, embedding
        self.mixing = None
        self.channels = channels
        if electrodes is not None:
            self.channels = virtual or channels
            self.mixing = PositionMixing(electrodes, self.channels)
        self.correction = None
        if subject_layer and subjects:
            self.correction = SubjectCorrection(self.channels, list(subjects))
        self.register_buffer("mean_embedding", torch.zeros(embedding))

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """(B, C, T), front ends applied, to what the head reads."""
        raise NotImplementedError

    def front(
        self, signals: Tensor, subject: Tensor | None, electrodes: Tensor | None = None
    ) -> Tensor:
        """Signals after position mixing and the subject's correction, where there are any."""
        if self.mixing is not None:
            signals = self.mixing(signals, electrodes)
        if self.correction is not None and subject is not None:
            signals = self.correction(signals, subject)
        return signals

    def forward(
        self,
        signals: Tensor,
        subject: Tensor | None = None,
        electrodes: Tensor | None = None,
    ) -> Tensor:
        """Image-space regression (B, P) of signals (B, C, T); not normalised.

        Parameters
        ----------
        subject
            (B,) subject numbers; None, or a number not trained on, uses what is shared.
        electrodes
            (C', 3) places, when they differ from those the encoder was built with.
        """
        found = self.head(self.features(self.front(signals, subject, electrodes), subject))
        return self.mean_embedding + found


class TokenEncoder(Encoder):
    """An encoder with a sequence of time tokens and a decoder for masked pre-training.

    ``n_tokens`` and ``width`` are set by the subclass; the class token, where there is one, is not
    counted in ``n_tokens``.
    """

    n_tokens: int
    width: int

    def encode(
        self, signals: Tensor, subject: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Tokens (B, tokens, width) of signals (B, C, T).

        Parameters
        ----------
        hidden
            (B, n_tokens) bool, tokens left out; the same number in each row.
        """
        raise NotImplementedError

    def reconstruct(
        self,
        signals: Tensor,
        subject: Tensor | None,
        ratio: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hide a share of the tokens and draw the whole signal.

        Returns
        -------
        tuple
            Reconstruction (B, C, T) and the hidden samples (B, T), bool.
        """
        raise NotImplementedError
