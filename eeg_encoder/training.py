"""The recipe: a recording and its pictures in, an encoder folder out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from .conditioning import pipeline_fingerprint
from .files import writable_folder
from .image_space import empty_caption_tokens, image_projection_weights
from .models.evidence import TEMPERATURES, PictureEvidence
from .models.memory import PictureMemory
from .models.token_head import TokenHead
from .pretrained import Pretrained, save_pretrained
from .recordings.trials import TrialSet
from .settings import SourceConfig, load_config, resolve_device, start
from .sources import Source, open_source
from .stages.align import AlignConfig, align
from .stages.batches import TrialBank
from .stages.pretrain import PretrainConfig, pretrain
from .stages.running import is_first_process
from .stages.targets import TargetConfig, picture_targets
from .starting import model_of, new_encoder, stages_before

__all__ = [
    "TrainConfig",
    "load_train_config",
    "remember",
    "resolve_device",
    "token_head",
    "train",
]


@dataclass
class TrainConfig(SourceConfig):
    """Everything ``eeg-encoder train`` and ``eeg-encoder align`` read, besides the recording's.

    Parameters
    ----------
    pictures, pipeline
        The picture folder and the pipeline folder.
    init
        Encoder folder of an earlier stage to go on from.
    model, pretrain, align, targets
        Settings of the parts. ``model`` holds a ``name`` and that model's settings.
    memory
        Remember the training pictures; see :class:`eeg_encoder.models.memory.PictureMemory`.
    """

    pictures: str = "???"
    pipeline: str = "???"
    init: Optional[str] = None  # noqa: UP045
    model: dict[str, Any] = field(default_factory=dict)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    memory: bool = True


def load_train_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """:func:`eeg_encoder.settings.load_config` of a :class:`TrainConfig`."""
    return load_config(TrainConfig, path, overrides)


def train(config: TrainConfig) -> dict[str, Any]:
    """Pre-train, align, save.

    Returns
    -------
    dict
        The figures that the encoder's ``config.json`` keeps.

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
    targets = picture_targets(
        config.pipeline,
        config.pictures,
        {name: bank.stimulus_ids for name, bank in banks.items()},
        config.targets,
        device=running.device,
        seed=config.seed,
    )
    model = model_of(config.model or ({} if config.init else {"name": "compact"}), config.init)
    settings = source.model_settings(targets["train"].shape[1], model)
    encoder = new_encoder(model, settings, config.init, source.preprocessing).to(running.device)
    pretrain(encoder, banks["train"], config.pretrain, running, seed=config.seed)
    chosen = align(
        encoder.to(running.device),
        banks["train"],
        targets["train"],
        banks.get("val"),
        targets.get("val"),
        config.align,
        running,
        seed=config.seed,
    )
    own_space = config.targets.layer is None
    tokens = token_head(config.pipeline) if own_space else None
    pretrained = Pretrained(
        encoder=encoder.cpu().eval(),
        tokens=tokens,
        preprocessing=source.preprocessing,
        config={
            "model": {"name": model["name"], "settings": settings},
            "tokens": _token_sizes(tokens),
            "base_model": pipeline_fingerprint(config.pipeline),
            **source.record,
            "protocol": source.protocol,
            "targets": asdict(config.targets),
            "trained": [*stages_before(config.init), *_stages(config)],
        },
    )
    pretrained.config["validation"] = dict(chosen)
    if "val" in banks:
        seen = dict(zip(banks["val"].stimulus_ids, targets["val"], strict=True))
        pretrained.config["validation"] |= (
            _remember(pretrained, source, banks["train"], targets["train"], seen)
            if config.memory
            else _cosines(pretrained, source.parts["val"], seen)
        )
    pretrained.config["training"] = {
        "seed": config.seed,
        "device": running.device,
        "seconds": round(time.monotonic() - started, 1),
        "pretrain_epochs": config.pretrain.epochs,
        "align_epochs": config.align.epochs,
        "parameters": sum(weight.numel() for weight in encoder.state_dict().values()),
    }
    if is_first_process():
        save_pretrained(out, pretrained, card=_card(pretrained, config))
    return pretrained.config


def _stages(config: TrainConfig) -> list[str]:
    epochs = {"pretrain": config.pretrain.epochs, "align": config.align.epochs}
    return [name for name, number in epochs.items() if number]


def _remember(
    pretrained: Pretrained,
    source: Source,
    bank: TrialBank,
    targets: Tensor,
    seen: Mapping[str, Tensor],
) -> dict[str, float]:
    """Evidence of the training signals, then :func:`remember`."""
    shown = dict(zip(bank.stimulus_ids, targets, strict=True))
    train = source.parts["train"]
    pretrained.evidence = PictureEvidence.fitted(
        bank.signals.cpu(),
        torch.stack([shown[str(name)] for name in train.stimuli]),
        torch.from_numpy(train.subjects),
        sfreq=source.preprocessing.output_sfreq,
    )
    return remember(pretrained, targets, source.parts["val"], seen)


def _cosines(
    pretrained: Pretrained, validation: TrialSet, seen: Mapping[str, Tensor]
) -> dict[str, float]:
    trials = validation.average()
    target = torch.stack([seen[str(name)] for name in trials.stimuli])
    cosine = (pretrained.embed(trials) * target).sum(dim=1)
    return {
        "cosine": round(float(cosine.mean()), 4),
        "cosine_sd": round(float(cosine.std()), 4),
    }


def token_head(pipeline: str | Path) -> TokenHead | None:
    """Token head from the pipeline's image projection; None for a pipeline without one."""
    if not (Path(pipeline) / "image_projection").is_dir():
        return None
    return TokenHead.from_weights(
        image_projection_weights(pipeline), empty_caption_tokens(pipeline)
    )


def _token_sizes(tokens: TokenHead | None) -> dict[str, int] | None:
    if tokens is None:
        return None
    n_tokens, width = tokens.null_tokens.shape
    return {
        "embedding": tokens.image_embeds.in_features,
        "n_tokens": int(n_tokens),
        "width": int(width),
    }


def remember(
    pretrained: Pretrained, pictures: Tensor, validation: TrialSet, seen: Mapping[str, Tensor]
) -> dict[str, float]:
    """Give an encoder a memory of training pictures (M, P), its temperatures chosen on validation.

    ``seen`` are the picture embeddings (P,) of the stimuli of ``validation``; trials of the same
    person and picture are averaged. Returns the mean cosine to them before and after the memory,
    and the standard deviation before.
    """
    counts = torch.bincount(torch.from_numpy(validation.groups()))
    trials = validation.average()
    target = torch.stack([seen[str(name)] for name in trials.stimuli])
    found = pretrained.embed(trials)
    pretrained.memory = PictureMemory.fitted(pictures, found, target)
    if pretrained.evidence is not None:
        _balance(pretrained, pretrained.evidence, trials, counts, found, target)
    cosine = (found * target).sum(dim=1)
    recalled = (pretrained.recall(found, pretrained.weigh(trials, counts)) * target).sum(dim=1)
    return {
        "cosine": round(float(cosine.mean()), 4),
        "cosine_sd": round(float(cosine.std()), 4),
        "cosine_recalled": round(float(recalled.mean()), 4),
    }


def _balance(
    pretrained: Pretrained,
    evidence: PictureEvidence,
    trials: TrialSet,
    counts: Tensor,
    found: Tensor,
    target: Tensor,
) -> None:
    """Choose the temperatures of evidence and memory together; without evidence where it harms."""
    assert pretrained.memory is not None
    alone, pictures = pretrained.memory, pretrained.memory.pictures
    best = alone.nearness(found, target)
    chosen = None
    evidence.temperature = 1.0
    plain = pretrained.weigh(trials, counts)
    assert plain is not None
    for temperature in TEMPERATURES:
        weighed = plain / temperature
        memory = PictureMemory.fitted(pictures, found, target, evidence=weighed)
        nearness = memory.nearness(found, target, weighed)
        if nearness > best:
            best, chosen = nearness, temperature
            pretrained.memory = memory
    if chosen is None:
        pretrained.evidence, pretrained.memory = None, alone
    else:
        evidence.temperature = chosen


def _card(pretrained: Pretrained, config: TrainConfig) -> str:
    training, validation = pretrained.config["training"], pretrained.config["validation"]
    model = pretrained.config["model"]["name"]
    lines = [
        "# EEG encoder",
        "",
        f"EEG to the image-embedding space of `{pretrained.config['base_model']}`, and to its",
        "cross-attention tokens. Trained with `eeg-encoder train`.",
        "",
        f"- model: `{model}`, {training['parameters']:,} parameters",
        f"- data: `{Path(config.recording).name}`, {pretrained.config['protocol']}",
        f"- seed {training['seed']}, {training['device']}, {training['seconds']} s",
        f"- epochs: {training['pretrain_epochs']} masked contrast, "
        f"{training['align_epochs']} alignment ({validation['selected']} on validation only)",
        f"- validation: {validation}",
        *_memory_line(pretrained),
        "",
    ]
    return "\n".join(lines)


def _memory_line(pretrained: Pretrained) -> list[str]:
    if pretrained.memory is None:
        return []
    sizes = pretrained.memory.sizes()
    return [
        f"- memory: {sizes['pictures']} training pictures, temperature {sizes['temperature']}, "
        "chosen on validation",
        *_evidence_line(pretrained),
    ]


def _evidence_line(pretrained: Pretrained) -> list[str]:
    if pretrained.evidence is None:
        return []
    sizes = pretrained.evidence.sizes()
    return [
        f"- evidence of the signals: {sizes['rank']} directions, subjects {sizes['subjects']}, "
        f"temperature {sizes['temperature']}, chosen on validation"
    ]
