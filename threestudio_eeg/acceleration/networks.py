"""Options of a pipeline's networks that change memory and time, and results by rounding only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WIDEST_FUSED_HEAD = 256


def prepare_networks(
    pipeline: Any,
    *,
    channels_last: bool = False,
    unet_checkpointing: Callable[..., Any] | None = None,
    vae_checkpointing: bool = False,
    vae_slicing: bool = False,
    fused_norms: bool = False,
) -> None:
    """Set up U-Net and VAE in place.

    Parameters
    ----------
    pipeline
        With ``unet`` and ``vae``.
    channels_last
        Weights of convolutions, and so activations, with channels innermost.
    unet_checkpointing
        diffusers' checkpointing function for the U-Net; None keeps its activations.
    vae_checkpointing
        Compute the VAE's activations again in the backward pass.
    vae_slicing
        Encode one picture of a batch at a time.
    fused_norms
        The blocks of the U-Net and the VAE's encoder as :mod:`.fused_blocks` has them.
    """
    if pipeline.vae.device.type == "cuda":
        attend_by_products(pipeline.vae.encoder)
    if channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if fused_norms:
        from .fused_blocks import fuse_blocks

        fuse_blocks(pipeline.vae.encoder)
        fuse_blocks(pipeline.unet)
    if unet_checkpointing is not None:
        pipeline.unet.enable_gradient_checkpointing(unet_checkpointing)
    if vae_checkpointing:
        pipeline.vae.enable_gradient_checkpointing(_checkpoint)
    if vae_slicing:
        pipeline.vae.enable_slicing()


def can_fuse(network: Any) -> bool:
    """Whether a U-Net, or a VAE's encoder, is of the kind that :mod:`.fused_blocks` knows."""
    from .fused_blocks import is_usual

    return is_usual(network)


def attend_by_products(network: Any) -> None:
    """Compute attention with heads wider than 256 by plain matrix products.

    The fast fused kernels end there. What is left for the one block of a VAE's encoder, a head of
    512 over 4,096 places, took 6 ms backward on an H200: a tenth of a whole guidance step.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor

    for part in network.modules():
        if isinstance(part, Attention) and part.inner_dim // part.heads > WIDEST_FUSED_HEAD:
            part.set_processor(AttnProcessor())


def _checkpoint(block: Any, *arguments: Any) -> Any:
    """Checkpoint without saving random states, which a recording could not read."""
    from torch.utils.checkpoint import checkpoint

    return checkpoint(block.__call__, *arguments, use_reentrant=False, preserve_rng_state=False)
