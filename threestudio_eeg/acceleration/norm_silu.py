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


def fuse_norms(network: Any) -> None:
    """Let a frozen U-Net, or a VAE's encoder, normalise by :class:`NormSiLU`, channels innermost.

    Of a U-Net these are the residual blocks and the output; its attention blocks keep theirs, which
    have no SiLU behind them.

    Raises
    ------
    InputError
        When the network has other activations, or residual blocks of another kind.
    """
    blocks = [part for part in network.modules() if hasattr(part, "nonlinearity")]
    acts = [block.nonlinearity for block in blocks] + [network.conv_act]
    norms = [getattr(b, name) for b in blocks for name in ("norm1", "norm2")]
    norms.append(network.conv_norm_out)
    known = all(isinstance(act, nn.SiLU) for act in acts) and all(map(_adds_time, blocks))
    if not (known and all(isinstance(norm, nn.GroupNorm) for norm in norms)):
        expected = "false: this network is not of group normalisations and SiLU"
        raise InputError("guidance", "fused_norms", True, expected)
    for block in blocks:
        block.norm1, block.norm2 = NormSiLU(block.norm1), NormSiLU(block.norm2)
        if getattr(block, "time_emb_proj", None) is not None:
            block.time_emb_proj = nn.Sequential(nn.SiLU(), block.time_emb_proj)
        block.nonlinearity = nn.Identity()
    network.conv_norm_out, network.conv_act = NormSiLU(network.conv_norm_out), nn.Identity()
    network.to(memory_format=torch.channels_last)


def _adds_time(block: Any) -> bool:
    """Whether a residual block has no time embedding, or activates it and adds it."""
    if getattr(block, "time_emb_proj", None) is None:
        return True
    return block.time_embedding_norm == "default" and not block.skip_time_act
