"""Group normalisation and SiLU in one, channels innermost: the torch code, and what uses it.

A VAE's encoder at 512 x 512 is bound by memory, and spends more of its time in these two than in
its convolutions. :mod:`.norm_silu_triton` is :func:`reference` for a GPU: it reads a picture twice
and writes it once, and convolutions get the channels innermost, as tensor cores want them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eeg_encoder.errors import InputError


def reference(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``silu(group_norm(x))`` of pictures (B, C, H, W)."""
    return F.silu(F.group_norm(x, groups, weight, bias, eps))


class NormSiLU(nn.Module):
    """A frozen group normalisation, and the SiLU behind it, for pictures (B, C, H, W).

    The gradient goes to the pictures only.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """The same as the two modules, the channels innermost in memory."""
        from .norm_silu_triton import norm_silu

        norm = self.norm
        return norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def fuse_norms(vae: Any) -> None:
    """Let a frozen VAE's encoder normalise by :class:`NormSiLU`, channels innermost.

    Raises
    ------
    InputError
        When the encoder has other activations, or residual blocks of another kind.
    """
    encoder = vae.encoder
    blocks = [part for part in encoder.modules() if hasattr(part, "nonlinearity")]
    acts = [block.nonlinearity for block in blocks] + [encoder.conv_act]
    plain = all(getattr(block, "time_emb_proj", None) is None for block in blocks)
    norms = [getattr(b, name) for b in blocks for name in ("norm1", "norm2")]
    norms.append(encoder.conv_norm_out)
    known = all(isinstance(act, nn.SiLU) for act in acts)
    if not (plain and known and all(isinstance(norm, nn.GroupNorm) for norm in norms)):
        expected = "false: this VAE's encoder is not of group normalisations and SiLU"
        raise InputError("guidance", "fused_norms", True, expected)
    for block in blocks:
        block.norm1, block.norm2 = NormSiLU(block.norm1), NormSiLU(block.norm2)
        block.nonlinearity = nn.Identity()
    encoder.conv_norm_out, encoder.conv_act = NormSiLU(encoder.conv_norm_out), nn.Identity()
    encoder.to(memory_format=torch.channels_last)
