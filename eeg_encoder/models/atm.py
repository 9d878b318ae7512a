"""Attention over electrodes, then temporal and spatial convolution: ATM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from . import register
from .base import Encoder
from .layers import ResidualHead, subject_rows
from .tsconv import TemporalSpatial


@register("atm")
class ATM(Encoder):
    """Adaptive thinking mapper.

    .. rubric:: Architecture

    1. Each electrode's signal is one token of width T (an inverted transformer): linear T to T, a
       token of the subject in front, ``depth`` post-norm transformer layers over the electrodes,
       LayerNorm; the subject's token is dropped: (B, C, T).
    2. Temporal and spatial convolutions of :class:`eeg_encoder.models.tsconv.TemporalSpatial`.
    3. Residual projector of width ``hidden`` to (B, P).

    Parameters
    ----------
    channels, samples, embedding, subjects, subject_layer, electrodes, virtual
        As in :class:`eeg_encoder.models.base.Encoder`. ``subjects`` get a token each; others share
        one.
    depth, heads, feed_forward, attention_dropout
        Of the transformer; the width of a head is T // heads.
    filters, kernel, pool, stride, dropout
        Of the convolutions.
    hidden
        Width of the projector.

    References
    ----------
    Li et al., "Visual Decoding and Reconstruction via EEG Embeddings with Guided Diffusion",
    NeurIPS 2024; Liu et al., "iTransformer", ICLR 2024.
    """

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        depth: int = 1,
        heads: int = 4,
        feed_forward: int = 256,
        attention_dropout: float = 0.25,
        filters: int = 40,
        kernel: int = 25,
        pool: int = 51,
        stride: int = 5,
        dropout: float = 0.5,
        hidden: int = 1024,
        **front: Any,
    ) -> None:
        super().__init__(channels, samples, embedding, subjects, **front)
        if samples < heads:
            raise InputError("model", "heads", heads, f"at most {samples} samples")
        self.subjects = [int(number) for number in subjects or []]
        self.embed = nn.Linear(samples, samples)
        self.subject_tokens = nn.Parameter(0.02 * torch.randn(len(self.subjects) + 1, samples))
        self.drop = nn.Dropout(attention_dropout)
        self.blocks = nn.ModuleList(
            [PostNormBlock(samples, heads, feed_forward, attention_dropout) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(samples)
        self.convolutions = TemporalSpatial(
            self.channels, samples, filters, kernel, pool, stride, dropout
        )
        self.head = ResidualHead(self.convolutions.features, hidden, embedding, dropout)

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """(B, filters, steps)."""
        tokens = torch.cat([self._subject_token(signals, subject), self.embed(signals)], dim=1)
        tokens = self.drop(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.convolutions(self.norm(tokens[:, 1:]))

    def _subject_token(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        shared = self.subject_tokens[-1].expand(len(signals), -1)
        if subject is None or not self.subjects:
            return shared[:, None]
        row, known = subject_rows(subject, self.subjects)
        return torch.where(known[:, None], self.subject_tokens[row], shared)[:, None]


class PostNormBlock(nn.Module):
    """Attention and a GELU MLP, each followed by adding the input and LayerNorm. (B, N, d)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        inner = heads * (width // heads)
        self.heads, self.dropout = heads, dropout
        self.qkv, self.out = nn.Linear(width, 3 * inner), nn.Linear(inner, width)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to (B, N, d)."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        x = self.norm_1(x + self.drop(self.out(attended.transpose(1, 2).reshape(b, n, -1))))
        return self.norm_2(x + self.drop(self.mlp(x)))
