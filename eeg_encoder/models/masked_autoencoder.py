"""The published masked autoencoder of EEG: one token for each few samples of all electrodes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import register
from .base import TokenEncoder
from .layers import Block, random_mask, sincos_positions, visible_first, visible_tokens


@register("masked_autoencoder")
class MaskedAutoencoder(TokenEncoder):
    """Vision transformer over time patches with a masked-signal decoder.

    .. rubric:: Architecture

    1. *Patches*: Conv1d over time, kernel and stride ``patch``, all electrodes mixed:
       (B, C, T) to (B, T / patch, width); fixed sine-cosine positions.
    2. *Encoder*: a class token, ``depth`` pre-norm blocks on the visible tokens, LayerNorm.
    3. *Decoder*: linear to ``decoder_width``, mask tokens at the hidden places, positions,
       ``decoder_depth`` blocks, LayerNorm, linear to ``patch`` x C samples, time-major.
    4. *Head*: a learnt weighted sum of the time tokens, then linear to P (DreamDiffusion's CLIP
       head); no part of the published encoder.

    The preset ``faithful`` has the published sizes: 128 x 512 signals in 128 tokens, an encoder of
    151,769,088 and a decoder of 13,412,864 parameters. ``joint`` is the same with the decoder of
    6 blocks that the second stage uses. ``small`` is for tests and CPUs.

    Parameters
    ----------
    channels, samples, embedding, subjects, subject_layer, electrodes, virtual
        As in :class:`eeg_encoder.models.base.Encoder`.
    patch
        Samples of a token.
    width, depth, heads, mlp_ratio, dropout
        Of the encoder.
    decoder_width, decoder_depth, decoder_heads
        Of the decoder.

    References
    ----------
    3D-Telepathy, arXiv 2506.21843, first stage; its encoder is DreamDiffusion's (Bai et al.,
    arXiv 2306.16934), after He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR
    2022.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "faithful": {
            "channels": 128,
            "samples": 512,
            "patch": 4,
            "width": 1024,
            "depth": 24,
            "heads": 16,
            "mlp_ratio": 1.0,
            "dropout": 0.0,
            "decoder_width": 512,
            "decoder_depth": 8,
            "decoder_heads": 16,
        },
        "small": {
            "patch": 5,
            "width": 128,
            "depth": 4,
            "heads": 4,
            "decoder_width": 64,
            "decoder_depth": 2,
            "decoder_heads": 4,
        },
    }
    presets["joint"] = {**presets["faithful"], "decoder_depth": 6}

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        patch: int = 4,
        width: int = 1024,
        depth: int = 24,
        heads: int = 16,
        mlp_ratio: float = 1.0,
        dropout: float = 0.0,
        decoder_width: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        **front: Any,
    ) -> None:
        super().__init__(channels, samples, embedding, subjects, **front)
        if samples % patch:
            raise InputError("model", "patch", patch, f"a divisor of {samples} samples")
        for name, size, parts in (
            ("width", width, heads),
            ("decoder_width", decoder_width, decoder_heads),
        ):
            if size % parts or size % 2:
                raise InputError("model", name, size, f"an even multiple of {parts} heads")
        self.n_tokens, self.width, self.patch = samples // patch, width, patch
        self.encoder = PatchEncoder(
            self.channels, self.n_tokens, patch, width, depth, heads, mlp_ratio, dropout
        )
        self.decoder = PatchDecoder(
            self.n_tokens,
            width,
            patch * channels,
            decoder_width,
            decoder_depth,
            decoder_heads,
            mlp_ratio,
        )
        self.head = WeightedTokens(self.n_tokens, width, embedding)

    def encode(
        self, signals: Tensor, subject: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """(B, C, T) to (B, 1 + visible tokens, width), class token first, normalised."""
        return self.encoder(self.front(signals, subject), hidden)

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """Time tokens (B, n_tokens, width)."""
        return self.encoder(signals)[:, 1:]

    def draw(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Signals (B, C, T) from visible tokens (B, 1 + visible, width)."""
        patches = self.decoder(tokens, hidden)
        rows = patches.reshape(len(patches), self.n_tokens * self.patch, -1)
        return rows.transpose(1, 2)

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
        drawn = self.redraw(signals, subject, hidden, int(self.n_tokens * (1 - ratio)))
        return drawn, hidden.repeat_interleave(self.patch, dim=1)

    def redraw(
        self, signals: Tensor, subject: Tensor | None, hidden: Tensor, visible: int
    ) -> Tensor:
        """The whole signals (B, C, T) from their visible tokens, ``visible`` in each row.

        A function of its tensors that never waits for the device, so a CUDA graph can record it.
        """
        return self.draw(self.encoder(self.front(signals, subject), hidden, visible), hidden)


class PatchEncoder(nn.Module):
    """Signals (B, C, T) to a class token and the visible time tokens (B, 1 + visible, width)."""

    positions: Tensor

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
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        positions = sincos_positions(n_tokens, width)
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.apply(_published_start)
        nn.init.normal_(self.cls, std=0.02)

    def forward(
        self, signals: Tensor, hidden: Tensor | None = None, visible: int | None = None
    ) -> Tensor:
        """``hidden`` (B, n_tokens) bool, the same number in each row; ``visible``: the others."""
        tokens = self.embed(signals).transpose(1, 2) + self.positions.to(signals)
        if hidden is not None:
            tokens = visible_tokens(tokens, hidden, visible)
        tokens = torch.cat([self.cls.expand(len(tokens), -1, -1).to(tokens), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class PatchDecoder(nn.Module):
    """Visible tokens to all patches (B, n_tokens, out); the class token has position zero."""

    positions: Tensor

    def __init__(
        self,
        n_tokens: int,
        width_in: int,
        out: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.enter = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = torch.cat([torch.zeros(1, width), sincos_positions(n_tokens, width)])
        self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio, 0.0) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, out)
        self.apply(_published_start)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """(B, 1 + visible, width_in) and (B, n_tokens) bool to (B, n_tokens, out)."""
        tokens = self.enter(tokens)
        b, n = hidden.shape
        blank = self.mask_token.to(tokens).expand(b, n + 1 - tokens.shape[1], -1)
        back = visible_first(hidden).argsort(dim=1)[:, :, None]
        whole = torch.cat([tokens[:, 1:], blank], dim=1).take_along_dim(back, 1)
        x = torch.cat([tokens[:, :1], whole], dim=1) + self.positions.to(tokens)
        for block in self.blocks:
            x = block(x)
        return self.leave(self.norm(x))[:, 1:]


class WeightedTokens(nn.Module):
    """A learnt weighted sum of the tokens, then linear: (B, n, width) to (B, P)."""

    def __init__(self, n_tokens: int, width: int, embedding: int) -> None:
        super().__init__()
        self.over_tokens = nn.Linear(n_tokens, 1)
        self.to_image = nn.Linear(width, embedding)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, width) to (B, P)."""
        return self.to_image(self.over_tokens(tokens.transpose(1, 2))[..., 0])


def _published_start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv1d):
        nn.init.normal_(module.weight, std=0.02)
