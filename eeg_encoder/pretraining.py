"""The recipes behind ``eeg-encoder pretrain`` and ``eeg-encoder joint``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from .cards import stage_card
from .errors import InputError
from .files import whole_file, writable_folder
from .pretrained import Pretrained, save_pretrained
from .settings import SourceConfig, start
from .sources import Source, open_source
from .stages.joint import JointConfig, join, joint_autoencoder, named_tower
from .stages.pictures import picture_bank
from .stages.pretrain import PretrainConfig, pretrain
from .stages.running import Running, is_first_process
from .starting import model_of, new_encoder, stages_before

JOINT_WEIGHTS = "joint.safetensors"


@dataclass
class PretrainRunConfig(SourceConfig):
    """Everything ``eeg-encoder pretrain`` reads, besides the recording's.

    Parameters
    ----------
    model
        ``name``, perhaps a ``preset``, and settings. Its ``embedding`` is the width of the head,
        which this stage does not train; a later stage with another width starts it anew.
    init
        Encoder folder to go on from.
    pretrain
        Settings of the stage.
    """

    model: dict[str, Any] = field(default_factory=dict)
    init: Optional[str] = None  # noqa: UP045
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass
class JointRunConfig(SourceConfig):
    """Everything ``eeg-encoder joint`` reads, besides the recording's.

    Parameters
    ----------
    pictures, pipeline
        Picture folder; pipeline folder, for ``joint.tower=pipeline`` only.
    model
        Settings over those of the encoder at ``init``, for example ``decoder_depth: 6``.
    init
        Encoder folder that ``pretrain`` wrote; null to begin from nothing.
    joint
        Settings of the stage.
    """

    pictures: str = "???"
    pipeline: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    init: Optional[str] = None  # noqa: UP045
    joint: JointConfig = field(default_factory=JointConfig)


def run_pretrain(config: PretrainRunConfig) -> dict[str, Any]:
    """Masked contrast on a recording, labelled or not; writes an encoder folder.

    Raises
    ------
    InputError
        For bad input files, a split that leaks, or settings that do not fit together.
    """
    started = time.monotonic()
    out = writable_folder(config.out)
    running = start(config)
    source = open_source(config, whole=True)
    banks = source.banks(running.device)
    model = model_of(config.model, config.init)
    settings = source.model_settings(int(model.get("embedding", 768)), model)
    encoder = new_encoder(model, settings, config.init, source.preprocessing).to(running.device)
    pretrain(
        encoder, banks["train"], config.pretrain, running, seed=config.seed, val=banks.get("val")
    )
    return _finish(
        "pretrain", out, config, encoder, {"name": model["name"], "settings": settings}, source,
        running, started, config.pretrain.epochs, {},
    )  # fmt: skip


def run_joint(config: JointRunConfig) -> dict[str, Any]:
    """Masked EEG and masked pictures; writes an encoder folder, and beside it the whole model.

    Raises
    ------
    InputError
        For bad input files, a split that leaks, or settings that do not fit together.
    """
    started = time.monotonic()
    out = writable_folder(config.out)
    running = start(config)
    source = open_source(config)
    banks = source.banks(running.device)
    if not config.pipeline and config.joint.tower == "pipeline":
        raise InputError("config", "pipeline", "nothing", "a folder, or another joint.tower")
    tower = named_tower(config.joint.tower, config.pipeline, config.joint.download)
    model = model_of(config.model, config.init)
    settings = source.model_settings(int(model.get("embedding", 768)), model)
    encoder = new_encoder(model, settings, config.init, source.preprocessing)
    both = joint_autoencoder(encoder, tower, config.joint).to(running.device)
    shown = {
        name: picture_bank(config.pictures, bank.stimulus_ids, both.picture.size, running.device)
        for name, bank in banks.items()
    }
    found = join(
        both,
        banks["train"],
        shown["train"],
        banks.get("val"),
        shown.get("val"),
        config.joint,
        running,
        seed=config.seed,
    )
    if is_first_process():
        _save_rest(both, out)
    return _finish(
        "joint", out, config, encoder, {"name": model["name"], "settings": settings}, source,
        running, started, config.joint.epochs, found,
    )  # fmt: skip


def _finish(
    stage: str,
    out: Path,
    config: PretrainRunConfig | JointRunConfig,
    encoder: Any,
    model: dict[str, Any],
    source: Source,
    running: Running,
    started: float,
    epochs: int,
    validation: dict[str, Any],
) -> dict[str, Any]:
    content = {
        "model": model,
        "tokens": None,
        "base_model": "",
        **source.record,
        "protocol": source.protocol,
        "trained": [*stages_before(config.init), stage],
        "validation": validation,
        "training": {
            "seed": config.seed,
            "device": running.device,
            "seconds": round(time.monotonic() - started, 1),
            "epochs": epochs,
            "parameters": sum(weight.numel() for weight in encoder.state_dict().values()),
        },
    }
    if is_first_process():
        pretrained = Pretrained(encoder.cpu().eval(), None, source.preprocessing, content)
        save_pretrained(out, pretrained, card=stage_card(stage, content))
    return content


def _save_rest(both: Any, out: Path) -> None:
    """What of the joint model is neither the encoder nor the frozen tower."""
    from safetensors.torch import save

    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in both.state_dict().items()
        if not name.startswith(("eeg.", "picture.tower."))
    }
    with whole_file(out / JOINT_WEIGHTS) as temporary:
        temporary.write_bytes(save(weights))
