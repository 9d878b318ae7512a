"""Masked EEG and masked pictures, each drawn with the help of the other (MERL, second stage)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from .image_autoencoder import ImageAutoencoder
from .layers import random_mask
from .masked_autoencoder import MaskedAutoencoder


@dataclass
class JointAnswer:
    """What one step of the joint stage draws.

    Parameters
    ----------
    eeg
        Patches (B, n, patch C) of the signals, time-major.
    eeg_hidden
        (B, n) bool.
    pixels
        Patches (B, m, 3 p p) of the pictures.
    pixels_hidden
        (B, m) bool.
    """

    eeg: Tensor
    eeg_hidden: Tensor
    pixels: Tensor
    pixels_hidden: Tensor


class CrossBlock(nn.Module):
    """Self-attention, attention to the other modality, GELU MLP. (B, N, d).

    By default a standard pre-norm decoder block,

        x = x + SA(LN(x));  x = x + CA(LN(x), other);  x = x + MLP(LN(x)).

    ``faithful`` is the published block, without a residual around the self-attention and with one
    LayerNorm for both attentions: h = SA(LN_a(x)); y = x + CA(LN_a(h), other);
    y + MLP(LN_b(y)); 9,450,240 parameters at width 768.

    Parameters
    ----------
    width, heads, mlp_ratio
        Sizes.
    faithful
        The published form.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, faithful: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.faithful = heads, faithful
        self.norm_self, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_cross = self.norm_self if faithful else nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.cross_out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """Own tokens (B, N, d) and the other modality's (B, M, d) to (B, N, d)."""
        query, key, value = self.qkv(self.norm_self(x)).chunk(3, dim=2)
        within = self._attend(query, key, value, self.out)
        asked = within if self.faithful else x + within
        query = self.query(self.norm_cross(asked))
        across = self._attend(query, self.key(other), self.value(other), self.cross_out)
        x = (x if self.faithful else asked) + across
        return x + self.mlp(self.norm_mlp(x))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, out: nn.Linear) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class JointAutoencoder(nn.Module):
    """EEG and picture autoencoders that look at each other through cross-attention.

    .. rubric:: One step

    1. Picture tokens without mask: frozen tower, (B, 1 + m, D).
    2. EEG masked by ``ratio``; its tokens, mapped to D, pass ``eeg_cross`` with the picture tokens
       as keys and values, are mapped back and drawn by the EEG decoder.
    3. EEG tokens without mask and without cross-attention; the gradient is kept.
    4. Pictures masked by ``picture_ratio``; the visible tokens pass ``picture_cross`` with the EEG
       tokens, mapped to D, as keys and values, and are drawn by the picture decoder.

    Queries are a modality's own, so the number of tokens stays what its decoder needs. By default
    the EEG tokens bypass the D-dimensional path by a residual and blocks are standard pre-norm
    decoder blocks; ``faithful`` leaves these residuals out, as published.

    Parameters
    ----------
    eeg
        From the first stage; its ``joint`` preset has the published decoder of 6 blocks.
    picture
        Frozen tower with a trainable decoder.
    blocks
        Cross-attention blocks for each side.
    heads
        Of those blocks.
    faithful
        The published form, without residuals.

    References
    ----------
    3D-Telepathy, arXiv 2506.21843, second stage, after CAD (Sun et al., "Contrast, Attend and
    Diffuse to Decode High-Resolution Images from Brain Activities", NeurIPS 2023).
    """

    def __init__(
        self,
        eeg: MaskedAutoencoder,
        picture: ImageAutoencoder,
        blocks: int = 3,
        heads: int = 12,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        width = picture.width
        if width % heads:
            raise InputError("joint stage", "heads", heads, f"a divisor of {width}")
        self.eeg, self.picture, self.faithful = eeg, picture, faithful
        self.eeg_in, self.eeg_out = nn.Linear(eeg.width, width), nn.Linear(width, eeg.width)
        self.eeg_norm = nn.LayerNorm(eeg.width)
        self.context = nn.Linear(eeg.width, width)
        self.eeg_cross, self.picture_cross = (
            nn.ModuleList([CrossBlock(width, heads, faithful=faithful) for _ in range(blocks)])
            for _ in range(2)
        )
        if not faithful:
            nn.init.zeros_(self.eeg_out.weight)
            nn.init.zeros_(self.eeg_out.bias)

    def forward(
        self,
        signals: Tensor,
        pictures: Tensor,
        subject: Tensor | None = None,
        *,
        ratio: float = 0.75,
        picture_ratio: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> JointAnswer:
        """Draw masked signals (B, C, T) and masked pictures (B, 3, H, W) in [0, 1]."""
        hidden, unseen = (
            random_mask(len(signals), n, share, device=signals.device, generator=generator)
            for n, share in ((self.eeg.n_tokens, ratio), (self.picture.n_tokens, picture_ratio))
        )
        seen = self.picture.encode(pictures)
        eeg = self.eeg.encode(signals, subject, hidden)
        context = self.context(self.eeg.encode(signals, subject))
        visible = self.picture.encode(pictures, unseen)
        for block in self.picture_cross:
            visible = block(visible, context)
        drawn = self.eeg.decoder(self._through_pictures(eeg, seen), hidden)
        return JointAnswer(drawn, hidden, self.picture.decoder(visible, unseen), unseen)

    def _through_pictures(self, eeg: Tensor, pictures: Tensor) -> Tensor:
        narrow = self.eeg_in(eeg)
        crossed = narrow
        for block in self.eeg_cross:
            crossed = block(crossed, pictures)
        wide = self.eeg_out(narrow + crossed)
        return self.eeg_norm(wide if self.faithful else eeg + wide)
