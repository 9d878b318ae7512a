"""From an encoder's tokens to a diffusion model's cross-attention context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError


class ContextHead(nn.Module):
    """Base of the heads: EEG tokens (B, N, W) to context (B, L, D).

    Carries the unconditional tokens beside it, which replace the context of samples that are
    dropped in training.

    Parameters
    ----------
    tokens_in, width_in
        N and W.
    n_tokens, width
        L and D.
    """

    null_tokens: Tensor
    kind = ""

    def __init__(self, tokens_in: int, width_in: int, n_tokens: int, width: int) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "kind": self.kind,
            "tokens_in": tokens_in,
            "width_in": width_in,
            "n_tokens": n_tokens,
            "width": width,
        }
        self.register_buffer("null_tokens", torch.zeros(n_tokens, width))


class QueryHead(ContextHead):
    """L learnt queries that attend to the EEG tokens.

    ``depth`` blocks of x = x + CA(LN(x), LN(eeg)); x = x + MLP(LN(x)), then LayerNorm: the
    resampler of Perceiver IO (Jaegle et al., arXiv 2107.14795).

    Parameters
    ----------
    tokens_in, width_in, n_tokens, width
        As in :class:`ContextHead`.
    depth, heads
        Of the blocks.
    """

    kind = "queries"

    def __init__(
        self,
        tokens_in: int,
        width_in: int,
        n_tokens: int,
        width: int,
        depth: int = 2,
        heads: int = 8,
    ) -> None:
        super().__init__(tokens_in, width_in, n_tokens, width)
        if width % heads:
            raise InputError("context head", "heads", heads, f"a divisor of {width}")
        self.settings |= {"depth": depth, "heads": heads}
        self.queries = nn.Parameter(torch.randn(n_tokens, width))
        self.enter = nn.Sequential(nn.Linear(width_in, width), nn.LayerNorm(width))
        self.blocks = nn.ModuleList([_QueryBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, W) to (B, L, D)."""
        eeg = self.enter(tokens)
        x = self.queries.expand(len(tokens), -1, -1)
        for block in self.blocks:
            x = block(x, eeg)
        return self.norm(x)


class LinearMappers(ContextHead):
    """The published mappers: two maps over the token axis, one over the width, all linear.

    Conv1d N to ``middle`` to L of kernel 1 over tokens (13,261 parameters from 128 by 64 to 77),
    linear W to D (787,200 from 1024 to 768). A class token is left out.

    Parameters
    ----------
    tokens_in, width_in, n_tokens, width
        As in :class:`ContextHead`.
    middle
        Tokens in between.

    References
    ----------
    3D-Telepathy, arXiv 2506.21843, after DreamDiffusion (Bai et al., arXiv 2306.16934).
    """

    kind = "linear"

    def __init__(
        self, tokens_in: int, width_in: int, n_tokens: int, width: int, middle: int = 64
    ) -> None:
        super().__init__(tokens_in, width_in, n_tokens, width)
        self.settings |= {"middle": middle}
        self.channel_mapper = nn.Sequential(
            nn.Conv1d(tokens_in, middle, 1), nn.Conv1d(middle, n_tokens, 1)
        )
        self.dim_mapper = nn.Linear(width_in, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, W) to (B, L, D)."""
        return self.dim_mapper(self.channel_mapper(tokens))


HEADS: dict[str, type[ContextHead]] = {head.kind: head for head in (QueryHead, LinearMappers)}


def build_context_head(kind: str, **settings: Any) -> ContextHead:
    """A head by name.

    Raises
    ------
    InputError
        For an unknown name or setting.
    """
    if kind not in HEADS:
        raise InputError("context head", "kind", kind, f"one of {', '.join(HEADS)}")
    try:
        return HEADS[kind](**settings)
    except TypeError as error:
        raise InputError("context head", kind, error, "settings that this head has") from error


def eeg_tokens(encoder: Any, signals: Tensor, subjects: Tensor | None) -> Tensor:
    """Time tokens (B, N, W) of an encoder, without its class token; for an encoder without tokens,
    its image-space regression as the only one."""
    if not hasattr(encoder, "encode"):
        return encoder(signals, subjects)[:, None]
    return encoder.encode(signals, subjects)[:, -encoder.n_tokens :]


def token_sizes(encoder: Any) -> dict[str, int]:
    """``tokens_in`` and ``width_in`` of :func:`eeg_tokens`."""
    if not hasattr(encoder, "encode"):
        return {"tokens_in": 1, "width_in": encoder.embedding}
    return {"tokens_in": encoder.n_tokens, "width_in": encoder.width}


class _QueryBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, eeg: Tensor) -> Tensor:
        key, value = self.key_value(eeg).chunk(2, dim=2)
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for t in (self.query(self.norm_1(x)), key, value)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.norm_2(x))
