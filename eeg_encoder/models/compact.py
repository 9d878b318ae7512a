"""A small encoder: spatial filters, time patches, a transformer, a masked-signal decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from . import register
from .base import TokenEncoder
from .layers import Block, SubjectMixing, random_mask, sincos_positions, visible_tokens


@register("compact")
class CompactEncoder(TokenEncoder):
    """Masked-contrastive EEG encoder with an alignment head, about 1.4 M parameters.

    Electrodes are mixed into ``filters`` virtual channels, with a correction for each subject; the
    time axis is cut into patches of ``patch`` samples, one token each; transformer blocks follow.
    Pre-training hides tokens and a light decoder draws the whole signal (He et al., "Masked
    Autoencoders Are Scalable Vision Learners", CVPR 2022; for EEG, 3D-Telepathy's MERL). The
    alignment head reads all tokens in their order, since evoked responses are locked to time, and
    adds to the mean image embedding.

    Parameters
    ----------
    channels, samples
        C and T of the signals.
    embedding
        P, width of the image-embedding space.
    subjects
        Numbers of the training subjects; empty for no subject layer.
    filters, patch, width, depth, heads, mlp_ratio, dropout
        Of the encoder.
    decoder_width, decoder_depth
        Of the decoder.
    head_width
        Hidden width of the alignment head.
    head_dropout
        On the tokens that the alignment head reads.
    head_norm
        Whether the head reads normalised tokens. Without, a linear path leads from the signal to
        the embedding, and averages of more trials than were trained on stay in range.
    """

    positions: Tensor
    decoder_positions: Tensor

    def __init__(
        self,
        channels: int,
        samples: int,
        embedding: int,
        subjects: list[int] | None = None,
        filters: int = 48,
        patch: int = 5,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        decoder_width: int = 64,
        decoder_depth: int = 2,
        head_width: int = 256,
        head_dropout: float = 0.5,
        head_norm: bool = False,
    ) -> None:
        super().__init__(channels, samples, embedding)
        if samples % patch:
            raise InputError("model", "patch", patch, f"a divisor of {samples} samples")
        if width % (2 * heads) or decoder_width % (2 * heads):
            expected = f"multiples of 2 x heads = {2 * heads}"
            raise InputError("model", "width", f"{width}, {decoder_width}", expected)
        self.patch, self.n_tokens, self.width = patch, samples // patch, width
        self.spatial = SubjectMixing(channels, filters, list(subjects or []))
        self.embed = nn.Conv1d(filters, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(self.n_tokens, width), persistent=False)
        self.head_norm = head_norm
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

        self.to_decoder = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.register_buffer(
            "decoder_positions", sincos_positions(self.n_tokens, decoder_width), persistent=False
        )
        self.decoder_blocks = nn.ModuleList(
            [Block(decoder_width, heads, mlp_ratio, 0.0) for _ in range(decoder_depth)]
        )
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.to_signal = nn.Linear(decoder_width, channels * patch)

        features = (self.n_tokens + 1) * width
        self.head_drop = nn.Dropout(head_dropout)
        self.head_in = nn.Linear(features, head_width)
        last = nn.Linear(head_width, head_width)
        self.head_mlp = nn.Sequential(
            nn.LayerNorm(head_width),
            nn.Linear(head_width, head_width),
            nn.GELU(),
            nn.Dropout(dropout),
            last,
        )
        self.head_out = nn.Linear(head_width, embedding)
        for token in (self.cls, self.mask_token):
            nn.init.normal_(token, std=0.02)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def encode(
        self, signals: Tensor, subject: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Tokens before the last norm, class token first.

        Parameters
        ----------
        signals
            (B, C, T)
        subject
            (B,) subject numbers.
        hidden
            (B, n) bool, tokens left out; the same number in each row.

        Returns
        -------
        Tensor
            (B, 1 + visible tokens, width)
        """
        tokens = self.embed(self.spatial(signals, subject)).transpose(1, 2)
        tokens = tokens + self.positions
        if hidden is not None:
            tokens = visible_tokens(tokens, hidden)
        tokens = torch.cat([self.cls.expand(len(tokens), -1, -1).to(tokens), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def reconstruct(
        self,
        signals: Tensor,
        subject: Tensor | None,
        ratio: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hide a share of the time patches and draw the whole signal.

        Returns
        -------
        tuple
            Reconstruction (B, C, T) and the hidden samples (B, T), bool.
        """
        hidden = random_mask(
            len(signals), self.n_tokens, ratio, device=signals.device, generator=generator
        )
        visible = self.to_decoder(self.norm(self.encode(signals, subject, hidden)[:, 1:]))
        tokens = self.mask_token.to(visible).repeat(len(signals), self.n_tokens, 1)
        tokens[~hidden] = visible.reshape(-1, visible.shape[2])
        tokens = tokens + self.decoder_positions
        for block in self.decoder_blocks:
            tokens = block(tokens)
        patches = self.to_signal(self.decoder_norm(tokens))
        patches = patches.reshape(len(signals), self.n_tokens, self.channels, self.patch)
        drawn = patches.permute(0, 2, 1, 3).reshape(signals.shape)
        return drawn, hidden.repeat_interleave(self.patch, dim=1)

    def features(self, signals: Tensor, subject: Tensor | None) -> Tensor:
        """All tokens, class token first, (B, (1 + n) width)."""
        tokens = self.encode(signals, subject)
        tokens = self.norm(tokens) if self.head_norm else tokens
        return self.head_drop(tokens.flatten(1))

    def head(self, features: Tensor) -> Tensor:  # type: ignore[override]
        """Features to the distance from the mean embedding (B, P); its length tells how sure the
        encoder is."""
        hidden = self.head_in(features)
        return self.head_out(hidden + self.head_mlp(hidden))


def unit(embedding: Tensor) -> Tensor:
    """Embeddings scaled to length one."""
    return F.normalize(embedding.float(), dim=-1)
