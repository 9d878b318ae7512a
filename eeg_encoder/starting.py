"""A stage that goes on from the encoder of an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import models
from .errors import InputError
from .preprocessing import Preprocessing
from .pretrained import Pretrained, from_pretrained

NEW_PARTS = ("head", "mean_embedding")
OF_SUBJECTS = ".own"
SAME = ("zscore", "clip", "whiten", "sfreq", "length")


def new_encoder(
    model: dict[str, Any],
    settings: dict[str, Any],
    init: str | None,
    preprocessing: Preprocessing,
) -> nn.Module:
    """An encoder of these settings, with the weights of an earlier stage where ``init`` names one.

    Parameters
    ----------
    init
        Encoder folder, or ``hf://owner/name``. Weights come over by name; a head of another width,
        and what belongs to other subjects, starts anew; blocks that the new decoder does not have
        are left out.

    Raises
    ------
    InputError
        When it is another network, or was trained on signals of another scale or rate.
    """
    encoder = models.build(model["name"], **settings)
    if init:
        earlier = from_pretrained(init)
        _check_same(init, earlier, model["name"], preprocessing)
        same_people = earlier.config["model"]["settings"].get("subjects") == settings["subjects"]
        _take_weights(encoder, earlier.encoder, init, same_people)
    return encoder


def stages_before(init: str | None) -> list[str]:
    """Stages that the encoder at ``init`` has been through."""
    return list(from_pretrained(init).config.get("trained", ["train"])) if init else []


def model_of(model: dict[str, Any], init: str | None) -> dict[str, Any]:
    """Model settings of a config, over those of the encoder at ``init``.

    Raises
    ------
    InputError
        Without a name.
    """
    if not init:
        if "name" not in model:
            raise InputError("config", "model.name", "nothing", f"one of {models.names()}")
        return model
    earlier = from_pretrained(init).config["model"]
    sizes = ("channels", "samples", "embedding", "subjects")
    kept = {key: value for key, value in earlier["settings"].items() if key not in sizes}
    return {"name": earlier["name"], **kept, **model}


def _check_same(
    init: str | Path, earlier: Pretrained, name: str, preprocessing: Preprocessing
) -> None:
    found = earlier.config["model"]["name"]
    if found != name:
        raise InputError(init, "model", found, name)
    for field in SAME:
        ours, theirs = getattr(preprocessing, field), getattr(earlier.preprocessing, field)
        if ours != theirs:
            raise InputError(init, f"preprocessing.{field}", theirs, f"{ours}, as configured here")


def _take_weights(
    encoder: nn.Module, earlier: nn.Module, init: str | Path, same_people: bool
) -> None:
    state, given = encoder.state_dict(), earlier.state_dict()
    taken: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if name.endswith(OF_SUBJECTS) and not same_people:
            continue
        fits = name in given and given[name].shape == value.shape
        if fits:
            taken[name] = given[name]
        elif not name.startswith(NEW_PARTS):
            found = tuple(given[name].shape) if name in given else "nothing"
            raise InputError(init, name, found, f"shape {tuple(value.shape)}")
    encoder.load_state_dict(taken, strict=False)
