"""A frozen U-Net's and a VAE encoder's blocks in fewer and wider kernels, channels innermost.

A step at batch one is bound by its thousands of small kernels: biases and time embeddings added by
themselves, normalisations, copies from one memory layout to another. Here diffusers' own blocks
get another forward pass, with the same weights under the same names: what is added before a
normalisation is added inside it, what is added behind a convolution is added together, and
attention takes pictures as they lie.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from .group_norm import NormSiLU, normalise
from .pointwise import add_biased, geglu


def fuse_blocks(network: Any) -> None:
    """Give a frozen U-Net, or a VAE's encoder, the forward passes of this module, in place.

    Raises
    ------
    InputError
        When the network has other activations, or residual blocks of another kind.
    """
    if not is_usual(network):
        expected = "false: this network is not of group normalisations and SiLU"
        raise InputError("guidance", "fused_norms", True, expected)
    for block in _residual_blocks(network):
        block.__class__ = FusedResidualBlock
        block.prepare()
    for part in network.modules():
        if type(part) is Transformer2DModel and isinstance(part.norm, nn.GroupNorm):
            part.__class__ = FusedTransformer
        elif type(part) is GEGLU:
            part.__class__ = FusedGEGLU
        elif type(part) is Attention and _is_plain(part):
            part.set_processor(PlainAttention())  # type: ignore[arg-type]
    network.conv_norm_out, network.conv_act = NormSiLU(network.conv_norm_out), nn.Identity()
    network.to(memory_format=torch.channels_last)


def is_usual(network: Any) -> bool:
    """Whether a network is of group normalisations and SiLU, as :func:`fuse_blocks` wants it."""
    return (
        isinstance(network.conv_norm_out, nn.GroupNorm)
        and isinstance(network.conv_act, nn.SiLU)
        and all(map(_is_usual_block, _residual_blocks(network)))
    )


def _residual_blocks(network: Any) -> list[Any]:
    return [part for part in network.modules() if hasattr(part, "nonlinearity")]


def _is_usual_block(block: Any) -> bool:
    """Whether a residual block does what :class:`FusedResidualBlock` does."""
    return (
        type(block) is ResnetBlock2D
        and isinstance(block.nonlinearity, nn.SiLU)
        and isinstance(block.norm1, nn.GroupNorm)
        and isinstance(block.norm2, nn.GroupNorm)
        and block.upsample is None
        and block.downsample is None
        and block.dropout.p == 0
        and block.output_scale_factor == 1
        and (block.time_emb_proj is None or _adds_time(block))
    )


def _adds_time(block: Any) -> bool:
    """Whether a residual block activates its time embedding and adds it."""
    return block.time_embedding_norm == "default" and not block.skip_time_act


def _is_plain(attention: Any) -> bool:
    """Whether attention does what :class:`PlainAttention` does."""
    norms = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k")
    return (
        type(attention.processor) is AttnProcessor2_0
        and not any(getattr(attention, name, None) for name in norms)
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
        and attention.to_out[1].p == 0
    )


class FusedResidualBlock(ResnetBlock2D):
    """Biases of the first convolution and time go into the second norm, the others into one sum."""

    first_bias: Tensor
    last_bias: Tensor

    def prepare(self) -> None:
        """Add up the biases that are added in one place."""
        first, last = _bias(self.conv1), _bias(self.conv2)
        if self.time_emb_proj is not None:
            first = first + self.time_emb_proj.bias
        if self.conv_shortcut is not None:
            last = last + _bias(self.conv_shortcut)
        self.register_buffer("first_bias", first.detach(), persistent=False)
        self.register_buffer("last_bias", last.detach(), persistent=False)

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *_: Any, **__: Any) -> Tensor:
        """As diffusers'; pictures (B, C, H, W), embeddings (B, E) or None."""
        hidden = _without_bias(self.conv1, normalise(self.norm1, input_tensor))
        if self.time_emb_proj is None or temb is None:
            added = self.first_bias.expand(len(hidden), -1)
        else:
            added = F.linear(F.silu(temb), self.time_emb_proj.weight, self.first_bias)
        hidden = _without_bias(self.conv2, normalise(self.norm2, hidden, added))
        if self.conv_shortcut is not None:
            input_tensor = _without_bias(self.conv_shortcut, input_tensor)
        return add_biased(hidden, input_tensor, self.last_bias)


class FusedTransformer(Transformer2DModel):
    """Tokens are the pictures' own memory: no copies between layouts on the way in and out."""

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        batch, channels, height, width = hidden_states.shape
        normed = normalise(self.norm, hidden_states, activate=False)
        tokens = normed.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        tokens = F.linear(tokens, self.proj_in.weight.flatten(1), self.proj_in.bias)
        return tokens, tokens.shape[-1]

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        out = F.linear(hidden_states, self.proj_out.weight.flatten(1), self.proj_out.bias)
        picture = out.reshape(batch_size, height, width, -1).permute(0, 3, 1, 2)
        return picture + residual.contiguous(memory_format=torch.channels_last)


class PlainAttention:
    """Attention of tokens, with nothing before or behind it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """As diffusers' processors; tokens (B, L, C), context (B, M, D) or None."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        tokens = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        query, key, value = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in tokens)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        result: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return result


class FusedGEGLU(GEGLU):
    """Gate and product in one kernel."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """As diffusers'; (..., I) to (..., O)."""
        return geglu(self.proj(hidden_states))


def _bias(layer: Any) -> Tensor:
    """A layer's bias, or zeros."""
    if layer.bias is not None:
        bias: Tensor = layer.bias
        return bias
    return layer.weight.new_zeros(layer.weight.shape[0])  # type: ignore[no-any-return]


def _without_bias(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation)
