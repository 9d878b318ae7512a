"""Attention over electrodes and over time, in turn."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import register
from .base import TokenEncoder
from .layers import (
    Block,
    ResidualHead,
    flat_places,
    fourier_places,
    random_mask,
    sincos_positions,
    visible_tokens,
)

AXES = ("both", "time")
HARMONICS = 8


@register("dual_self_attention")
class DualSelfAttention(TokenEncoder):
    """Axial transformer on the grid of electrodes and time patches.

    3D-Telepathy's abstract (arXiv 2506.21843) names a dual self-attention encoder; its definition
    is not published, and the public code has one self-attention over time. This is our own
    definition, and no claim is made that it is theirs.

    .. rubric:: Architecture

    1. *Grid*: each electrode's signal is cut into patches of ``patch`` samples, one linear map for
       all: (B, C, T) to (B, C, n, width), n = T / patch. A place code is added for the electrode (a
       learnt vector, or a linear map of the Fourier series of its place when ``electrodes`` are
       given) and a fixed sine-cosine code for the time.
    2. *Dual blocks*, ``depth`` times: a transformer block along the electrodes of each time patch,
       then a transformer block along the time of each electrode (cf. axial attention, Ho et al.,
       arXiv 1912.12180).
    3. *Read-out*: the electrodes of a time patch are joined by one linear map, in their order:
       (B, n, token_width).
    4. *Head*: all tokens in their order, a residual projector to P.
    5. *Decoder* for masked pre-training: time patches are hidden for all electrodes at once; mask
       tokens and blocks along time draw them.

    The variant ``axes="time"`` (preset ``temporal_only``) has no electrode axis: the patch
    embedding mixes the electrodes, as in the public code, and attention runs along time only.

    Parameters
    ----------
    channels, samples, embedding, subjects, subject_layer
        As in :class:`eeg_encoder.models.base.Encoder`.
    electrodes
        (C, 3) places for the electrodes' place codes. No channels are mixed.
    axes
        ``both`` or ``time``.
    patch, width, depth, heads, mlp_ratio, dropout
        Of the grid and its blocks. With ``axes="time"``, ``token_width`` is the blocks' width.
    token_width
        Of the tokens after the read-out.
    decoder_width, decoder_depth
        Of the decoder.
    head_width, head_dropout
        Of the head.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "dual": {"axes": "both"},
        "temporal_only": {"axes": "time"},
    }

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        subject_layer: bool = False,
        electrodes: list[list[float]] | None = None,
        axes: str = "both",
        patch: int = 10,
        width: int = 32,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        token_width: int = 128,
        decoder_width: int = 64,
        decoder_depth: int = 2,
        head_width: int = 256,
        head_dropout: float = 0.5,
    ) -> None:
        super().__init__(channels, samples, embedding, subjects, subject_layer)
        if axes not in AXES:
            raise InputError("model", "axes", axes, "both or time")
        if samples % patch:
            raise InputError("model", "patch", patch, f"a divisor of {samples} samples")
        for name, size in (("width", width), ("token_width", token_width)):
            if size % (2 * heads):
                raise InputError("model", name, size, f"a multiple of 2 x heads = {2 * heads}")
        self.n_tokens, self.width, self.patch = samples // patch, token_width, patch
        self.tokens: nn.Module
        if axes == "both":
            self.tokens = DualTokens(
                channels, self.n_tokens, patch, width, depth, heads, mlp_ratio, dropout,
                token_width, electrodes,
            )  # fmt: skip
        else:
            self.tokens = TimeTokens(
                channels, self.n_tokens, patch, token_width, depth, heads, mlp_ratio, dropout
            )
        self.decoder = TimeDecoder(
            self.n_tokens, token_width, patch * channels, decoder_width, decoder_depth, heads
        )
        self.drop = nn.Dropout(head_dropout)
        self.head = ResidualHead(self.n_tokens * token_width, head_width, embedding, dropout)

    def encode(
        self, signals: Tensor, subject: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """(B, C, T) to (B, visible tokens, token_width)."""
        return self.tokens(self.front(signals, subject), hidden)

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """All tokens (B, n, token_width)."""
        return self.drop(self.tokens(signals, None))

    def reconstruct(
        self,
        signals: Tensor,
        subject: Tensor | None,
        ratio: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`eeg_encoder.models.base.TokenEncoder.reconstruct`."""
        hidden = random_mask(
            len(signals), self.n_tokens, ratio, device=signals.device, generator=generator
        )
        patches = self.decoder(self.encode(signals, subject, hidden), hidden)
        rows = patches.reshape(len(signals), self.n_tokens * self.patch, -1)
        return rows.transpose(1, 2), hidden.repeat_interleave(self.patch, dim=1)


class DualTokens(nn.Module):
    """(B, C, T) to (B, visible, token_width) by attention along electrodes and along time."""

    times: Tensor
    waves: Tensor

    def __init__(
        self,
        channels: int,
        n_tokens: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
        token_width: int,
        electrodes: list[list[float]] | None,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(patch, width)
        self.register_buffer("times", sincos_positions(n_tokens, width), persistent=False)
        waves = torch.eye(channels)
        if electrodes is not None:
            waves = fourier_places(flat_places(torch.tensor(electrodes)), HARMONICS)
        self.register_buffer("waves", waves.float(), persistent=False)
        self.place = nn.Linear(self.waves.shape[1], width, bias=False)
        nn.init.normal_(self.place.weight, std=0.02)
        self.across = nn.ModuleList([Block(width, heads, mlp_ratio, dropout) for _ in range(depth)])
        self.along = nn.ModuleList([Block(width, heads, mlp_ratio, dropout) for _ in range(depth)])
        self.join = nn.Linear(channels * width, token_width)

    def forward(self, signals: Tensor, hidden: Tensor | None) -> Tensor:
        """``hidden`` (B, n_tokens) bool, the same number in each row."""
        b, c, _ = signals.shape
        grid = self.embed(signals.reshape(b, c, -1, self.patch))
        grid = grid + self.times.to(grid) + self.place(self.waves.to(grid))[:, None]
        grid = grid.transpose(1, 2)
        if hidden is not None:
            grid = visible_tokens(grid, hidden)
        for across, along in zip(self.across, self.along, strict=True):
            grid = across(grid.flatten(0, 1)).reshape(grid.shape)
            turned = grid.transpose(1, 2)
            grid = along(turned.flatten(0, 1)).reshape(turned.shape).transpose(1, 2)
        return self.join(grid.flatten(2))


class TimeTokens(nn.Module):
    """(B, C, T) to (B, visible, width) by attention along time; the embedding mixes electrodes."""

    times: Tensor

    def __init__(
        self,
        channels: int,
        n_tokens: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv1d(channels, width, patch, stride=patch)
        self.register_buffer("times", sincos_positions(n_tokens, width), persistent=False)
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio, dropout) for _ in range(depth)])

    def forward(self, signals: Tensor, hidden: Tensor | None) -> Tensor:
        """``hidden`` (B, n_tokens) bool, the same number in each row."""
        tokens = self.embed(signals).transpose(1, 2)
        tokens = tokens + self.times.to(tokens)
        if hidden is not None:
            tokens = visible_tokens(tokens, hidden)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class TimeDecoder(nn.Module):
    """Visible time tokens to all patches (B, n_tokens, out)."""

    times: Tensor

    def __init__(
        self, n_tokens: int, width_in: int, out: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, width))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_buffer("times", sincos_positions(n_tokens, width), persistent=False)
        self.blocks = nn.ModuleList([Block(width, heads, 2.0, 0.0) for _ in range(depth)])
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, out))

    def forward(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """(B, visible, width_in) and (B, n_tokens) bool to (B, n_tokens, out)."""
        visible = self.enter(visible)
        whole = self.mask_token.to(visible).repeat(*hidden.shape, 1)
        whole[~hidden] = visible.reshape(-1, visible.shape[2])
        whole = whole + self.times.to(whole)
        for block in self.blocks:
            whole = block(whole)
        return self.leave(whole)
