"""Settings of a VSD run that fit a card's memory, the fastest that do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError

from ..neural_fields.recomputation import RECOMPUTED_CHUNK, RECOMPUTED_FROM

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

SAMPLES = 25_700_000
SHARE_SHADED = 0.2
KEPT_BYTES, PEAK_BYTES, AT_SAMPLES = 97, 191, 12_800_000
"""Measured on an H200 (docs/figures/train-step-h200.json, ``benchmarks/train_step.py``, the setup
"default"). A training render of 512 x 512 pixels and 512 samples a ray shades 25.7 million of
them, 0.19 of all, at a mean opacity of 0.51. One of 12.8 million keeps so many bytes a sample
between its forward and its backward pass, and takes so many at the peak of the latter, where the
graph of the field is made of a million samples at a time."""

CHUNK_GB = (PEAK_BYTES - KEPT_BYTES) * AT_SAMPLES / 2**30
GRAPH_BYTES = KEPT_BYTES + CHUNK_GB * 2**30 / RECOMPUTED_CHUNK
"""What that million takes beside what is kept, and from it what a sample takes in a render so small
that its graph is kept. Both are upper limits: the gradients of all samples are counted as the
million's. The former does not grow with the render: with 25.7 million samples the whole step took
6.8 GB (of 2**30 bytes) at its peak, and 8.3 are expected, the reserve left out: a GB of it is the
guidance's, in the memory of its CUDA graph, which that peak does not have."""

LOOK_UP_BYTES = 140
"""What a fused field keeps beside: 64 of a sample that is looked at, of which there are one and a
half a shaded one, and its point, values and place. Counted; an object's peak grew from 5.5 to 8.9
GB with it (docs/figures/object-time-h200.json)."""

RENDER_CHUNK, SMALL_CHUNK_GB = 1 << 18, CHUNK_GB / 2
"""Samples at a time where memory is short, and what they take: a rough allowance."""

OTHER_BYTES = 600
"""What a sample takes with other renderers than that of densities: a rough allowance."""

MIN_CHUNK, MAX_CHUNK = 20_000, 1_000_000
POINT_BYTES = 2_000
"""Memory of a point in an evaluation render: encoding, networks and compositing, roughly."""

MIN_SIDE = 64


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
    look_ups: bool = False


_SMALL_CHUNKS = ", training renders in small chunks"
_CHOICES = (
    _Choice("all activations kept, and the field's look-ups", look_ups=True),
    _Choice("all activations kept"),
    _Choice("VAE checkpointed: its encoder runs twice a step", True),
    _Choice("VAE and U-Net checkpointed: both run twice a step", True, True),
    _Choice(f"VAE and U-Net checkpointed{_SMALL_CHUNKS}", True, True, True),
    _Choice(
        f"VAE and U-Net checkpointed{_SMALL_CHUNKS}, no CUDA graphs, whose memory nothing else can "
        "use: many times slower",
        True,
        True,
        True,
        False,
    ),
)


def _without_chunks(choice: _Choice) -> _Choice:
    return replace(choice, chunk_render=False, reason=choice.reason.replace(_SMALL_CHUNKS, ""))


def settings_for(
    vram_gb: float,
    *,
    batch: int = 1,
    image_size: int = 512,
    samples: int = SAMPLES,
    renders: int = 1,
    lora: bool = True,
    weights_gb: float = WEIGHTS_GB,
    chunks: bool = True,
    look_ups: bool = False,
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
    samples
        That a training render shades, in all of its views.
    renders
        A step's, one an object.
    lora
        VSD; without it SDS, which has no LoRA to train.
    weights_gb
        U-Net, VAE and LoRA; the default is Stable Diffusion 1.5's in half precision.
    chunks
        The renderer is that of densities: it can train in chunks.
    look_ups
        Grid and networks are fused: they may keep what was looked up, or look again.

    Raises
    ------
    InputError
        When not even the leanest settings fit.
    """
    fused = look_ups and chunks
    choices = [choice for choice in _CHOICES if fused or not choice.look_ups]
    for choice in choices if chunks else map(_without_chunks, choices):
        render = _render_gb(samples, renders, choice.chunk_render, chunks, choice.look_ups)
        needed = _expected_gb(choice, batch * (image_size / 512) ** 2, render, lora, weights_gb)
        if needed <= vram_gb:
            free_gb = vram_gb - RESERVE_GB - weights_gb
            return _settings(choice, needed, free_gb, batch, lora, fused and not choice.look_ups)
    raise InputError(
        "vram",
        "gigabytes",
        vram_gb,
        f"at least {needed:.1f} for {batch} views of {image_size} pixels (or a smaller batch, "
        "resolution or num_samples_per_ray)",
    )


def _expected_gb(
    choice: _Choice, views: float, render: tuple[float, float], lora: bool, weights_gb: float
) -> float:
    """Peak of a step.

    The LoRA's pass runs beside the scores where the U-Net keeps its activations in a CUDA graph;
    else it follows the VAE's backward pass and takes its place.
    """
    vae = (VAE_CHECKPOINTED_GB if choice.checkpoint_vae else VAE_GB) * views
    trained = (LORA_CHECKPOINTED_GB if choice.checkpoint_unet else LORA_GB) * views
    scores = FORWARD_GB * views * (3 if lora else 2)
    again = VAE_BLOCK_GB * views if choice.checkpoint_vae else 0.0
    of_picture = vae + max(scores, again)
    of_lora = trained + FORWARD_GB * views if lora else 0.0
    beside = choice.graphs and not choice.checkpoint_unet
    guidance = of_picture + of_lora if beside else max(of_picture, of_lora)
    kept, peak = render
    together = guidance + peak if choice.graphs else max(guidance + kept, peak)
    return RESERVE_GB + weights_gb + together


def _render_gb(
    samples: int, renders: int, small: bool, chunks: bool, look_ups: bool = False
) -> tuple[float, float]:
    """What so many renders keep between forward and backward pass, and take at the peak."""
    if not chunks:
        whole = OTHER_BYTES * samples * renders / 2**30
        return whole / 2, whole
    graph = GRAPH_BYTES * samples / 2**30
    if samples < RECOMPUTED_FROM and not small:
        return graph * renders, graph * renders
    kept = (KEPT_BYTES + LOOK_UP_BYTES * look_ups) * samples * renders / 2**30
    return kept, kept + min(SMALL_CHUNK_GB if small else CHUNK_GB, graph)


def _settings(
    choice: _Choice, needed: float, free_gb: float, batch: int, lora: bool, look_again: bool
) -> Settings:
    chunk = int(min(max(max(free_gb, 0.0) * 2**30 / 4 / POINT_BYTES, MIN_CHUNK), MAX_CHUNK))
    overrides: dict[str, Any] = {
        "system.guidance.acceleration": "auto" if choice.graphs else "none",
        "system.guidance.checkpoint_vae": choice.checkpoint_vae,
        "system.guidance.checkpoint_unet": choice.checkpoint_unet and lora,
        "system.guidance.vae_slicing": choice.checkpoint_vae and batch > 1,
        "system.renderer.eval_chunk_size": chunk,
    }
    if choice.chunk_render or look_again:
        size = RENDER_CHUNK if choice.chunk_render else RECOMPUTED_CHUNK
        overrides["system.renderer.train_chunk_size"] = size
    reasons = [choice.reason, f"evaluation renders {chunk:,} points at a time"]
    if overrides["system.guidance.vae_slicing"]:
        reasons.append("pictures are encoded one at a time")
    return Settings(overrides, needed, reasons)


def settings_for_experiment(config: Any, vram_gb: float, *, together: int = 1) -> Settings:
    """Return the fastest settings of an experiment that fit a card's memory.

    When not even the leanest fit at the experiment's own resolution, the renders' last resolution
    is halved until they do; the guidance looks at pictures of the pipeline's size all the same.

    Parameters
    ----------
    config
        As ``load_config`` returns it, for the embedded host or threestudio.
    vram_gb
        Memory that the run may take.
    together
        Objects side by side in the one process.

    Raises
    ------
    InputError
        When nothing fits.
    """
    from ..builtin.config import C_max

    guidance, data = config.system.guidance, config.data
    pipeline = Path(_pipeline(str(guidance.get("pretrained_model_name_or_path", "phantom"))))
    lora = "vsd" in str(config.system.guidance_type)
    views = max(_stages(data.get("batch_size", 1)))
    common: dict[str, Any] = {
        "chunks": config.system.renderer_type == "nerf-volume-renderer",
        "batch": together * views,
        "renders": together,
        "image_size": _picture_side(pipeline),
        "lora": lora,
        "look_ups": _is_fused(config.system.geometry),
        "weights_gb": _weights_gb(pipeline, bool(guidance.get("half_precision_weights", True))),
    }
    sides = [_stages(data.get(name, 64)) for name in ("width", "height")]
    samples = int(C_max((config.system.get("renderer") or {}).get("num_samples_per_ray", 512)))
    while True:
        pixels = max(w * h for w, h in zip(*sides, strict=True))
        shaded = int(views * pixels * samples * SHARE_SHADED)
        try:
            chosen = settings_for(vram_gb, samples=shaded, **common)
        except InputError:
            if max(map(max, sides)) <= MIN_SIDE:
                raise
            sides = [[max(min(side, max(of) // 2), MIN_SIDE) for side in of] for of in sides]
            continue
        return _of_experiment(chosen, config, sides)


def _of_experiment(chosen: Settings, config: Any, sides: Sequence[Sequence[int]]) -> Settings:
    """Leave out what the experiment's parts do not have; add a resolution that was lowered."""
    overrides, reasons = dict(chosen.overrides), list(chosen.reasons)
    if config.system.renderer_type != "nerf-volume-renderer":
        overrides = {k: v for k, v in overrides.items() if not k.startswith("system.renderer.")}
        reasons = [reason for reason in reasons if not reason.startswith("evaluation renders")]
    if not str(config.system.guidance_type).startswith("eeg-"):
        overrides = {k: v for k, v in overrides.items() if not k.startswith("system.guidance.")}
    for name, side in zip(("width", "height"), sides, strict=True):
        if side != _stages(config.data.get(name, 64)):
            overrides[f"data.{name}"] = side if len(side) > 1 else side[0]
            reasons.append(f"renders lowered to a {name} of {side[-1]} pixels")
    return replace(chosen, overrides=overrides, reasons=reasons)


def _is_fused(geometry: Any) -> bool:
    """Whether a field's grid and networks are kernels of their own on a GPU."""
    return (geometry.get("mlp_network_config") or {}).get("backend") in ("auto", "triton")


def _stages(value: Any) -> list[int]:
    return [int(value)] if isinstance(value, int) else [int(item) for item in value]


def _pipeline(name: str) -> str:
    from ..pipeline import pipeline_folder

    try:
        return str(pipeline_folder(name))
    except InputError:
        return name


def _picture_side(pipeline: Path) -> int:
    """Side of the VAE's pictures: the U-Net's latents times what the VAE shrinks by."""
    import json

    try:
        unet = json.loads((pipeline / "unet" / "config.json").read_text(encoding="utf-8"))
        vae = json.loads((pipeline / "vae" / "config.json").read_text(encoding="utf-8"))
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError):
        return 512


def _weights_gb(pipeline: Path, half: bool) -> float:
    """U-Net and VAE by the numbers in their files; Stable Diffusion 1.5's where there are none."""
    from math import prod

    from safetensors import safe_open

    count = 0
    for part in ("unet", "vae"):
        files = sorted((pipeline / part).glob("*.safetensors"))
        for file in files[:1]:
            with safe_open(file, "pt") as content:
                count += sum(prod(content.get_slice(key).get_shape()) for key in content.keys())  # noqa: SIM118
    return count * (2 if half else 4) / 2**30 if count else WEIGHTS_GB
