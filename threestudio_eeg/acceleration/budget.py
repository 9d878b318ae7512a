"""Settings of a VSD run that fit a card's memory, the fastest that do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eeg_encoder.errors import InputError

WEIGHTS_GB = 1.8
"""U-Net and VAE of Stable Diffusion 1.5 in half precision, and the LoRA with its optimiser."""

VAE_GB, VAE_CHECKPOINTED_GB, VAE_BLOCK_GB = 1.48, 0.11, 0.82
LORA_GB, LORA_CHECKPOINTED_GB = 0.76, 0.15
"""What autograd keeps of one 512 x 512 view through the VAE's encoder and the U-Net with adapters:
counted tensor by tensor in half precision; with checkpoints between blocks; and within the VAE's
largest block, which is computed again."""

FORWARD_GB = 0.2
"""Working memory of a U-Net forward pass of one sample: a rough allowance."""

RESERVE_GB = 2.0
"""CUDA context, libraries' workspaces and fragmentation: a rough allowance."""

RENDER_CHUNK, RENDER_CHUNKED_GB = 1 << 18, 1.0
"""Samples of a training render at a time, and what it then takes: a rough allowance."""

MIN_CHUNK, MAX_CHUNK = 20_000, 1_000_000
POINT_BYTES = 2_000
"""Memory of a point in an evaluation render: encoding, networks and compositing, roughly."""


@dataclass(frozen=True)
class Settings:
    """Overrides of a run's config, what memory they are expected to take, and why they were chosen.

    Attributes
    ----------
    overrides
        By dotted key, for instance ``system.guidance.checkpoint_vae``.
    needed_gb
        Expected peak, an estimate.
    reasons
        One sentence a choice.
    """

    overrides: dict[str, Any]
    needed_gb: float
    reasons: list[str]

    def arguments(self) -> list[str]:
        """Return the overrides as a command line takes them."""
        return [f"{key}={str(value).lower()}" for key, value in self.overrides.items()]

    def describe(self) -> str:
        """Say what was chosen, for a log."""
        return "\n".join([f"expected peak {self.needed_gb:.1f} GB", *self.reasons])


@dataclass(frozen=True)
class _Choice:
    reason: str
    checkpoint_vae: bool = False
    checkpoint_unet: bool = False
    chunk_render: bool = False
    graphs: bool = True


_CHOICES = (
    _Choice("all activations kept"),
    _Choice("VAE checkpointed: its encoder runs twice a step", True),
    _Choice("VAE and U-Net checkpointed: both run twice a step", True, True),
    _Choice("VAE and U-Net checkpointed, training renders in chunks", True, True, True),
    _Choice(
        "VAE and U-Net checkpointed, training renders in chunks, no CUDA graphs, whose memory "
        "nothing else can use: many times slower",
        True,
        True,
        True,
        False,
    ),
)


def settings_for(
    vram_gb: float,
    *,
    batch: int = 1,
    image_size: int = 512,
    render_gb: float = 3.0,
    lora: bool = True,
) -> Settings:
    """Return the fastest settings whose expected peak fits ``vram_gb``.

    Parameters
    ----------
    vram_gb
        Memory that the run may take.
    batch
        Views a step.
    image_size
        Side of the pictures that the VAE encodes. Memory of activations grows with its square.
    render_gb
        What rendering with its graph takes at the run's own resolution and samples.
    lora
        VSD; without it SDS, which has no LoRA to train.

    Raises
    ------
    InputError
        When not even the leanest settings fit.
    """
    for choice in _CHOICES:
        needed = _expected_gb(choice, batch * (image_size / 512) ** 2, render_gb, lora)
        if needed <= vram_gb:
            return _settings(choice, needed, vram_gb, batch, lora)
    raise InputError(
        "vram",
        "gigabytes",
        vram_gb,
        f"at least {needed:.1f} for {batch} views of {image_size} pixels (or a smaller batch, "
        "resolution or num_samples_per_ray)",
    )


def _expected_gb(choice: _Choice, views: float, render_gb: float, lora: bool) -> float:
    """Peak of a step; the LoRA's pass follows the VAE's backward pass and takes its place."""
    vae = (VAE_CHECKPOINTED_GB if choice.checkpoint_vae else VAE_GB) * views
    trained = (LORA_CHECKPOINTED_GB if choice.checkpoint_unet else LORA_GB) * views
    scores = FORWARD_GB * views * (3 if lora else 2)
    again = VAE_BLOCK_GB * views if choice.checkpoint_vae else 0.0
    guidance = max(vae + max(scores, again), trained + FORWARD_GB * views if lora else 0.0)
    render = min(render_gb, RENDER_CHUNKED_GB) if choice.chunk_render else render_gb
    together = guidance + render if choice.graphs else max(guidance + render / 2, render)
    return RESERVE_GB + WEIGHTS_GB + together


def _settings(choice: _Choice, needed: float, vram_gb: float, batch: int, lora: bool) -> Settings:
    free = max(vram_gb - RESERVE_GB - WEIGHTS_GB, 0.0)
    chunk = int(min(max(free * 2**30 / 4 / POINT_BYTES, MIN_CHUNK), MAX_CHUNK))
    overrides: dict[str, Any] = {
        "system.guidance.acceleration": "auto" if choice.graphs else "none",
        "system.guidance.checkpoint_vae": choice.checkpoint_vae,
        "system.guidance.checkpoint_unet": choice.checkpoint_unet and lora,
        "system.guidance.vae_slicing": choice.checkpoint_vae and batch > 1,
        "system.renderer.eval_chunk_size": chunk,
        "system.renderer.train_chunk_size": RENDER_CHUNK if choice.chunk_render else 0,
    }
    reasons = [choice.reason, f"evaluation renders {chunk:,} points at a time"]
    if overrides["system.guidance.vae_slicing"]:
        reasons.append("pictures are encoded one at a time")
    return Settings(overrides, needed, reasons)
