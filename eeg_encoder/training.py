"""The recipe: a recording and its pictures in, an encoder folder out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from . import models
from .conditioning import pipeline_fingerprint
from .errors import InputError
from .files import writable_folder
from .image_space import embed_pictures, empty_caption_tokens, image_projection_weights
from .models.evidence import TEMPERATURES, PictureEvidence
from .models.memory import PictureMemory
from .models.token_head import TokenHead
from .preprocessing import Preprocessing
from .pretrained import Pretrained, save_pretrained
from .recordings.perceivelab import load_perceivelab, load_splits
from .recordings.splits import check_split
from .recordings.trials import TrialSet
from .stages.align import AlignConfig, align
from .stages.batches import TrialBank
from .stages.pretrain import PretrainConfig, pretrain
from .stages.running import Running


@dataclass
class PreprocessingConfig:
    """See :class:`eeg_encoder.preprocessing.Preprocessing`."""

    sfreq: float = 250.0
    band: Optional[list[float]] = None  # noqa: UP045
    whiten: bool = True
    shrinkage: float = 0.01
    demean: bool = True
    clip: float = 8.0


@dataclass
class TrainConfig:
    """Everything ``eeg-encoder train`` reads.

    Parameters
    ----------
    recording, splits, pictures, pipeline
        The ``.pth`` file, its split file, the picture folder, the pipeline folder.
    out
        Encoder folder to write.
    split, subjects, window, scale
        Which split; which subjects (null: all); samples kept; factor to volts.
    allow_within_block
        Train although the split cuts through the blocks of a block design; figures are marked.
    device, precision, seed, progress, threads
        ``auto``, ``cpu`` or ``cuda``; Lightning's precision; seed; progress bars; CPU threads, 0
        for torch's own choice.
    preprocessing, model, pretrain, align
        Settings of the parts. ``model`` holds a ``name`` and that model's settings.
    """

    recording: str = "???"
    splits: str = "???"
    pictures: str = "???"
    pipeline: str = "???"
    out: str = "outputs/encoder"
    split: int = 0
    subjects: Optional[list[int]] = None  # noqa: UP045
    window: list[int] = field(default_factory=lambda: [20, 460])
    scale: float = 1.0
    allow_within_block: bool = False
    device: str = "auto"
    precision: str = "32-true"
    seed: int = 0
    progress: bool = True
    threads: int = 0
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    model: dict[str, Any] = field(default_factory=lambda: {"name": "compact"})
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    align: AlignConfig = field(default_factory=AlignConfig)


def load_train_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and ``key=value`` overrides into a checked config.

    Raises
    ------
    InputError
        For an unknown key, a value of the wrong type, or a required key that is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for override in overrides:
        if "=" not in override:
            raise InputError("command line", "override", override, "key=value")
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(TrainConfig),
            OmegaConf.load(path),
            OmegaConf.from_dotlist(list(overrides)),
        )
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        key = getattr(error, "full_key", None) or "config"
        reason = str(error).strip().splitlines()[0]
        raise InputError(path, key, reason, "a key and value that training knows") from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise InputError(path, missing[0], "nothing", f"a value, for example {missing[0]}=PATH")
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def resolve_device(name: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` takes a CUDA device when there is one.

    Raises
    ------
    InputError
        When CUDA is asked for and absent, or the name is unknown.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("command line", "device", "cuda, but no CUDA device", "cpu, or auto")
    if name not in ("cpu", "cuda"):
        raise InputError("command line", "device", name, "auto, cpu or cuda")
    return name


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
    device = resolve_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)

    trials = load_perceivelab(
        config.recording,
        scale=config.scale,
        subjects=config.subjects,
        window=(config.window[0], config.window[1]),
    )
    splits = load_splits(config.splits, trials.total, config.split)
    protocol = check_split(
        trials, splits, where=config.splits, allow_within_block=config.allow_within_block
    )
    parts = {name: trials.at(splits[name]) for name in ("train", "val")}
    if not len(parts["train"]):
        raise InputError(config.splits, "train", "no trials", "at least one")
    preprocessing = Preprocessing(
        **{name: getattr(config.preprocessing, name) for name in ("sfreq", "band", "whiten")},
        shrinkage=config.preprocessing.shrinkage,
        demean=config.preprocessing.demean,
        clip=config.preprocessing.clip,
    ).fit(parts["train"], seed=config.seed)
    banks = {
        name: TrialBank.of(part, preprocessing(part), device)
        for name, part in parts.items()
        if len(part)
    }
    targets = {
        name: embed_pictures(config.pipeline, config.pictures, bank.stimulus_ids, device=device)
        for name, bank in banks.items()
    }

    settings = {
        "channels": len(trials.channels),
        "samples": preprocessing.output_samples,
        "embedding": targets["train"].shape[1],
        "subjects": sorted({int(number) for number in parts["train"].subjects}),
        **{key: value for key, value in config.model.items() if key != "name"},
    }
    encoder = models.build(config.model["name"], **settings).to(device)
    running = Running(device, config.precision, out / "logs", config.progress)
    pretrain(encoder, banks["train"], config.pretrain, running, seed=config.seed)
    chosen = align(
        encoder.to(device),
        banks["train"],
        targets["train"],
        banks.get("val"),
        targets.get("val"),
        config.align,
        running,
        seed=config.seed,
    )
    tokens = token_head(config.pipeline)
    pretrained = Pretrained(
        encoder=encoder.cpu().eval(),
        tokens=tokens,
        preprocessing=preprocessing,
        config={
            "model": {"name": config.model["name"], "settings": settings},
            "tokens": _token_sizes(tokens),
            "base_model": pipeline_fingerprint(config.pipeline),
            "window": list(config.window),
            "scale": config.scale,
            "protocol": protocol,
        },
    )
    pretrained.config["validation"] = dict(chosen)
    if "val" in banks:
        shown = dict(zip(banks["train"].stimulus_ids, targets["train"].cpu(), strict=True))
        pretrained.evidence = PictureEvidence.fitted(
            banks["train"].signals.cpu(),
            torch.stack([shown[str(name)] for name in parts["train"].stimuli]),
            torch.from_numpy(parts["train"].subjects),
            sfreq=preprocessing.output_sfreq,
        )
        seen = dict(zip(banks["val"].stimulus_ids, targets["val"].cpu(), strict=True))
        pretrained.config["validation"] |= remember(
            pretrained, targets["train"].cpu(), parts["val"], seen
        )
    pretrained.config["training"] = {
        "seed": config.seed,
        "device": device,
        "seconds": round(time.monotonic() - started, 1),
        "pretrain_epochs": config.pretrain.epochs,
        "align_epochs": config.align.epochs,
        "parameters": sum(weight.numel() for weight in encoder.state_dict().values()),
    }
    save_pretrained(out, pretrained, card=_card(pretrained, config))
    return pretrained.config


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
    for temperature in TEMPERATURES:
        evidence.temperature = temperature
        weighed = pretrained.weigh(trials, counts)
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
    lines = [
        "# EEG encoder",
        "",
        f"EEG to the image-embedding space of `{pretrained.config['base_model']}`, and to its",
        "cross-attention tokens. Trained with `eeg-encoder train`.",
        "",
        f"- model: `{config.model['name']}`, {training['parameters']:,} parameters",
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
