"""Pictures from an EEG trial or a text, written to a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, writable_folder, write_json

from ..evaluation.views import contact_sheet
from .cameras import PictureCameras
from .distilling import distil_pictures
from .sampling import CHUNK, sample_pictures

METHODS = ("sample", "sds", "vsd")
SPACES = ("latent", "pixel")
TIMESTEPS = ("random", "descending")
DEFAULT_STEPS = {"sample": 50, "sds": 300, "vsd": 500}
DEFAULT_SCALE = {"sample": 3.0, "sds": 7.5, "vsd": 7.5}


@dataclass(frozen=True)
class ImageOptions:
    """Which pictures.

    Parameters
    ----------
    out
        Folder for the files.
    method
        ``sample``: DDIM. ``sds``, ``vsd``: particles optimised by the guidance.
    conditioning, trial
        EEG: the file, and a row or id; or
    prompt
        a text.
    n, views
        Particles, and views of each from evenly around the object; 0 views: no camera.
    steps, guidance_scale
        None for :data:`DEFAULT_STEPS` and :data:`DEFAULT_SCALE`.
    space
        Of the particles: ``latent`` or ``pixel``.
    timesteps
        ``random``, or ``descending`` from 0.98 to 0.02 of the schedule as the steps go on.
    lr, lora_lr
        Of the particles and of VSD's adapters.
    pipeline
        Folder, or ``phantom``; the folder of a refined U-Net samples from that.
    """

    out: Path
    method: str = "sample"
    conditioning: Path | None = None
    trial: str = "0"
    prompt: str | None = None
    n: int = 4
    views: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    space: str = "latent"
    timesteps: str = "random"
    lr: float = 0.03
    lora_lr: float = 1e-3
    elevation: float = 15.0
    distance: float = 2.0
    pipeline: str = "phantom"
    seed: int = 0
    device: str = "cpu"
    quiet: bool = False


def make_images(options: ImageOptions) -> dict[str, Any]:
    """Make the pictures; write ``000.png``, …, ``grid.png`` and, last, ``images.json``.

    Returns
    -------
    dict
        The content of ``images.json``: options, where the prompt comes from, one entry a picture,
        ``similarity`` (mean cosine between pictures and the decoded EEG, in the image tower's
        space), ``agreement_of_particles`` and ``agreement_of_views`` (mean pairwise cosine).

    Raises
    ------
    InputError
        For options that do not fit together, or files that do not fit the pipeline.
    """
    from ..builtin.base import device_scope

    _check(options)
    steps = options.steps or DEFAULT_STEPS[options.method]
    with device_scope(options.device):
        prompt = _prompt(options)()
        cameras = PictureCameras.around(
            options.n,
            options.views,
            elevation=options.elevation,
            distance=options.distance,
            device=options.device,
        )
        guidance = _guidance(options, steps, cameras.view_dependent)
        out = writable_folder(options.out)
        pictures, curve = _make(options, guidance, prompt, cameras, steps)
    pictures = pictures.clamp(0, 1).float().cpu()
    if not bool(pictures.isfinite().all()):
        raise InputError(options.out, "pictures", "NaN or infinity", "finite values (lower --lr)")
    entries = _write(out, pictures, cameras)
    result = {
        "method": options.method,
        "options": _plain({**asdict(options), "steps": steps}),
        "guidance_scale": float(guidance.guidance_scale),
        "pipeline": guidance.pipeline.fingerprint,
        "prompt": options.prompt or getattr(prompt, "provenance", {}),
        "pictures": entries,
        **_figures(options, pictures, cameras),
        "curve": curve,
    }
    write_json(out / "images.json", result)
    return result


def _check(options: ImageOptions) -> None:
    where = "command line"
    for field, value, known in (
        ("method", options.method, METHODS),
        ("space", options.space, SPACES),
        ("timesteps", options.timesteps, TIMESTEPS),
    ):
        if value not in known:
            raise InputError(where, field, value, ", ".join(known))
    if (options.conditioning is None) == (options.prompt is None):
        found = "neither" if options.prompt is None else "both"
        raise InputError(where, "--conditioning, --prompt", found, "exactly one of them")
    for field, number, least in (("n", options.n, 1), ("views", options.views, 0)):
        if number < least:
            raise InputError(where, field, number, f"{least} or more")


def _prompt(options: ImageOptions) -> Any:
    from ..pipeline import pipeline_folder

    common = {"pretrained_model_name_or_path": options.pipeline}
    if options.conditioning is not None:
        from ..prompt_processor import EEGPromptProcessor

        given = {"conditioning": str(options.conditioning), "trial": options.trial}
        return EEGPromptProcessor({**common, **given})
    from ..builtin.prompts import StableDiffusionPromptProcessor

    has_views = (pipeline_folder(options.pipeline) / "view_encoder").is_dir()
    words = {"prompt": options.prompt, "view_wording": not has_views}
    return StableDiffusionPromptProcessor({**common, **words})


def _guidance(options: ImageOptions, steps: int, view_dependent: bool) -> Any:
    from ..guidance import SDSGuidance, VSDGuidance

    scale = options.guidance_scale
    settings: dict[str, Any] = {
        "pretrained_model_name_or_path": options.pipeline,
        "guidance_scale": DEFAULT_SCALE[options.method] if scale is None else scale,
        "view_dependent_prompting": view_dependent,
        "acceleration": "none",
        "half_precision_weights": False,
    }
    if options.timesteps == "descending" and options.method != "sample":
        falling = [0, 0.98, 0.02, max(steps - 1, 1)]
        settings |= {"min_step_percent": falling, "max_step_percent": falling}
    kind = VSDGuidance if options.method == "vsd" else SDSGuidance
    return kind(settings)


def _make(
    options: ImageOptions, guidance: Any, prompt: Any, cameras: PictureCameras, steps: int
) -> tuple[Tensor, list[dict[str, float]]]:
    sampled = options.method == "sample"
    total = steps * (-(-len(cameras) // CHUNK) if sampled else 1)
    with _progress(options.method, total, options.quiet) as on_step:
        if sampled:
            pictures = sample_pictures(
                guidance, prompt, cameras, steps=steps, seed=options.seed, on_step=on_step
            )
            return pictures, []
        done = distil_pictures(
            guidance,
            prompt,
            cameras,
            steps=steps,
            space=options.space,
            lr=options.lr,
            lora_lr=options.lora_lr,
            seed=options.seed,
            on_step=on_step,
        )
    return done.pictures, done.curve


@contextmanager
def _progress(title: str, total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    from rich.progress import Progress

    with Progress(transient=True, disable=quiet) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


def _write(out: Path, pictures: Tensor, cameras: PictureCameras) -> list[dict[str, Any]]:
    pixels = (pictures * 255).round().byte().numpy()
    entries = []
    labels = []
    for number, picture in enumerate(pixels):
        particle, view = divmod(number, cameras.n_views)
        with whole_file(out / f"{number:03d}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        entry: dict[str, Any] = {"file": f"{number:03d}.png", "particle": particle}
        labels.append(str(particle))
        if cameras.view_dependent:
            place = {
                "view": view,
                "azimuth": float(cameras.azimuth[number]),
                "elevation": float(cameras.elevation[number]),
            }
            entry |= place
            labels[-1] += f", {place['azimuth']:.0f}°"
        entries.append(entry)
    columns = cameras.n_views if cameras.n_views > 1 else max(1, round(len(pixels) ** 0.5))
    with whole_file(out / "grid.png") as temporary:
        contact_sheet(list(np.asarray(pixels)), columns, labels).save(temporary, format="PNG")
    _remove_older(out, len(pixels))
    return entries


def _remove_older(out: Path, count: int) -> None:
    from ..evaluation.views import remove_views

    remove_views(out, keep=count)


def _figures(options: ImageOptions, pictures: Tensor, cameras: PictureCameras) -> dict[str, Any]:
    """Figures in the image tower's space; none for a pipeline without one."""
    from ..evaluation.shape import view_agreement
    from ..pipeline import load_pipeline

    tower = load_pipeline(options.pipeline, device=options.device, parts=("image_encoder",))
    if tower.image_encoder is None:
        return {}
    rgb = pictures.permute(0, 3, 1, 2).to(tower.device)
    embedded = torch.cat([tower.encode_pictures(part).float().cpu() for part in rgb.split(64)])
    sets = embedded.view(-1, cameras.n_views, embedded.shape[1])
    figures: dict[str, Any] = {}
    if options.conditioning is not None:
        figures["similarity"] = float((embedded @ _decoded(options)).mean())
    if len(sets) > 1:
        each = [view_agreement(sets[:, view]) for view in range(cameras.n_views)]
        figures["agreement_of_particles"] = sum(each) / len(each)
    if cameras.n_views > 1:
        each = [view_agreement(views) for views in sets]
        figures["agreement_of_views"] = sum(each) / len(each)
    return figures


def _decoded(options: ImageOptions) -> Tensor:
    from eeg_encoder.conditioning import load_conditioning

    assert options.conditioning is not None
    conditioning = load_conditioning(options.conditioning)
    pooled = conditioning.pooled[conditioning.index_of(options.trial)]
    return torch.nn.functional.normalize(pooled, dim=0)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
