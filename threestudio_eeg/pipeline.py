"""A diffusion pipeline's folder, in diffusers' layout, as frozen networks.

Sizes come from the networks' own configs: Stable Diffusion 1.5 and the phantom's small prior are
the same kind of thing here. ``image_encoder``, ``image_projection`` and ``view_encoder`` are parts
that Stable Diffusion does not have; they are ``None`` where the folder lacks them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eeg_encoder.conditioning import pipeline_fingerprint
from eeg_encoder.errors import InputError
from eeg_encoder.image_space import (
    image_projection_weights,
    picture_embeddings,
    text_tokens,
)

from .quiet import quiet_libraries
from .view_encoder import ViewEncoder

PARTS = (
    "unet",
    "vae",
    "scheduler",
    "tokenizer",
    "text_encoder",
    "image_encoder",
    "image_projection",
    "view_encoder",
)
Loader = Callable[[Path, torch.dtype], Any]


def phantom_prior() -> Path:
    """Folder of the small prior that ships with the package."""
    return Path(__file__).parent / "phantom" / "prior"


def pipeline_folder(name: str | Path) -> Path:
    """Folder of a pipeline given by path, or ``"phantom"`` for the one that ships.

    Raises
    ------
    InputError
        When there is no such folder, or it holds no pipeline.
    """
    folder = phantom_prior() if str(name) == "phantom" else Path(name)
    if not (folder / "unet" / "config.json").is_file():
        raise InputError(
            folder, "unet/config.json", "nothing", "a pipeline folder in diffusers' layout"
        )
    return folder


@dataclass
class Pipeline:
    """Frozen networks of one pipeline; parts that were not asked for or are absent are ``None``.

    ``latent_size`` and ``image_size`` are the side of the latent and of the picture in pixels;
    ``scaling_factor`` multiplies the VAE's latents.
    """

    path: Path
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    latent_size: int
    image_size: int
    scaling_factor: float
    unet: Any = None
    vae: Any = None
    scheduler: Any = None
    tokenizer: Any = None
    text_encoder: Any = None
    image_encoder: Any = None
    image_projection: Any = None
    view_encoder: ViewEncoder | None = None

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Context tokens (B, L, D) of captions; the empty caption is the unconditional one."""
        return text_tokens(self.tokenizer, self.text_encoder, texts)

    @torch.no_grad()
    def encode_pictures(self, rgb: Tensor) -> Tensor:
        """Image embeddings (B, P) of unit length of pictures (B, 3, H, W) in [0, 1]."""
        return picture_embeddings(self.image_encoder, rgb)


def _loaders() -> dict[str, Loader]:
    """By part: a function of folder and dtype."""
    import diffusers
    import transformers
    from diffusers.models.embeddings import ImageProjection

    def network(kind: Any, dtype_argument: str) -> Loader:
        def load(folder: Path, dtype: torch.dtype) -> Any:
            options = {dtype_argument: dtype, "local_files_only": True}
            module, report = kind.from_pretrained(folder, output_loading_info=True, **options)
            missing = sorted(report["missing_keys"])
            if missing:
                raise InputError(folder, missing[0], "nothing", "a weight that the config asks for")
            return module

        return load

    return {
        "unet": network(diffusers.UNet2DConditionModel, "torch_dtype"),
        "vae": network(diffusers.AutoencoderKL, "torch_dtype"),
        "scheduler": lambda folder, _: diffusers.DDPMScheduler.from_pretrained(
            folder, local_files_only=True
        ),
        "tokenizer": lambda folder, _: transformers.CLIPTokenizer.from_pretrained(
            folder, local_files_only=True
        ),
        "text_encoder": network(transformers.CLIPTextModel, "dtype"),
        "image_encoder": network(transformers.CLIPVisionModelWithProjection, "dtype"),
        "image_projection": lambda folder, _: load_image_projection(folder, ImageProjection),
        "view_encoder": lambda folder, _: ViewEncoder.from_pretrained(folder),
    }


def load_image_projection(folder: Path, kind: Any) -> Any:
    """diffusers' ``ImageProjection`` is a plain module: read its sizes and weights ourselves."""
    module = kind(**json.loads((folder / "config.json").read_text()))
    module.load_state_dict(image_projection_weights(folder.parent))
    return module


def load_pipeline(
    name: str | Path,
    *,
    device: str | torch.device,
    dtype: torch.dtype = torch.float32,
    parts: Sequence[str] | None = None,
) -> Pipeline:
    """Load a pipeline's networks, frozen and in evaluation mode. Never uses the network.

    Parameters
    ----------
    name
        A folder in diffusers' layout, or ``"phantom"``.
    device, dtype
        Where the networks live, and their precision.
    parts
        Names out of :data:`PARTS`; default all that the folder has.

    Raises
    ------
    InputError
        When the folder is no pipeline, lacks a part it must have, or a part cannot be read.
    """
    folder = pipeline_folder(name)
    wanted = PARTS if parts is None else tuple(parts)
    loaders = _loaders()
    loaded = {
        part: _load_part(folder / part, loaders[part], torch.device(device), dtype)
        for part in wanted
        if (folder / part).is_dir()
    }
    latent_size, image_size, scaling_factor = _sizes(folder)
    return Pipeline(
        path=folder,
        fingerprint=pipeline_fingerprint(folder),
        device=torch.device(device),
        dtype=dtype,
        latent_size=latent_size,
        image_size=image_size,
        scaling_factor=scaling_factor,
        **loaded,
    )


def _sizes(folder: Path) -> tuple[int, int, float]:
    unet, vae = _config(folder, "unet"), _config(folder, "vae")
    latent_size = int(unet["sample_size"])
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return latent_size, latent_size * factor, float(vae.get("scaling_factor", 0.18215))


def _config(folder: Path, part: str) -> dict[str, Any]:
    file = folder / part / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(file, "file", reason, "the JSON config of a diffusers network") from error


def _load_part(folder: Path, load: Loader, device: torch.device, dtype: torch.dtype) -> Any:
    try:
        with quiet_libraries():
            part = load(folder, dtype)
            if isinstance(part, torch.nn.Module):
                part.to(device=device, dtype=dtype).eval().requires_grad_(False)
    except InputError:
        raise
    except Exception as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise InputError(folder, "weights", reason, "a part that diffusers can load") from error
    return part
