"""From an image-space embedding to cross-attention tokens, as the pipeline itself does it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenHead(nn.Module):
    """Linear map and LayerNorm, (B, P) to (B, L, D), as diffusers' ``ImageProjection``.

    After IP-Adapter (Ye et al., arXiv 2308.06721, section 3.2.1). Carries the unconditional tokens
    beside it.

    Parameters
    ----------
    embedding
        P
    n_tokens, width
        L and D.
    """

    null_tokens: Tensor

    def __init__(self, embedding: int, n_tokens: int, width: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.image_embeds = nn.Linear(embedding, n_tokens * width)
        self.norm = nn.LayerNorm(width)
        self.register_buffer("null_tokens", torch.zeros(n_tokens, width))

    @classmethod
    def from_weights(cls, weights: dict[str, Tensor], null_tokens: Tensor) -> TokenHead:
        """Head with the pipeline's image projection and unconditional tokens (L, D)."""
        width = len(weights["norm.weight"])
        rows, embedding = weights["image_embeds.weight"].shape
        head = cls(embedding, rows // width, width)
        head.load_state_dict({**weights, "null_tokens": null_tokens})
        return head

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, P) unit embeddings to (B, L, D)."""
        return self.norm(self.image_embeds(pooled).reshape(len(pooled), self.n_tokens, -1))
