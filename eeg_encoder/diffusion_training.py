"""The recipes behind ``eeg-encoder condition`` and ``eeg-encoder refine``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .cards import CAVEAT, stage_card
from .conditioning import pipeline_fingerprint
from .errors import InputError
from .files import whole_file, writable_folder
from .image_space import embed_pictures
from .models.context_head import eeg_tokens
from .pretrained import CARD, Pretrained, from_pretrained, save_pretrained
from .recordings.perceivelab import picture_path
from .settings import SourceConfig, start
from .sources import Source, open_source, read_recording
from .stages.adapters import write_pipeline
from .stages.batches import TrialBank
from .stages.condition import ConditionConfig, condition, conditioner
from .stages.diffusion import load_denoiser
from .stages.pictures import picture_bank, picture_files
from .stages.refine import RefineConfig, refine
from .stages.running import is_first_process
from .stages.targets import TargetConfig, picture_targets
from .training import remember

PICTURES = (".jpeg", ".jpg", ".png")


@dataclass
class ConditionRunConfig(SourceConfig):
    """Everything ``eeg-encoder condition`` reads, besides the recording's.

    Parameters
    ----------
    pictures, pipeline
        Picture folder; pipeline folder in diffusers' layout.
    init
        Encoder folder of an earlier stage. Its preprocessing is used as it is.
    condition
        Settings of the stage.
    """

    pictures: str = "???"
    pipeline: str = "???"
    init: str = "???"
    condition: ConditionConfig = field(default_factory=ConditionConfig)


@dataclass
class RefineRunConfig(SourceConfig):
    """Everything ``eeg-encoder refine`` reads, besides the recording's.

    Parameters
    ----------
    pictures, pipeline
        Picture folder; pipeline folder to refine.
    init
        Encoder folder that makes tokens: of ``train``, ``align`` or ``condition``.
    refine
        Settings of the stage.
    """

    out: str = "outputs/refined"
    pictures: str = "???"
    pipeline: str = "???"
    init: str = "???"
    refine: RefineConfig = field(default_factory=RefineConfig)


def run_condition(config: ConditionRunConfig) -> dict[str, Any]:
    """Train an encoder's context head through a pipeline's U-Net; writes an encoder folder.

    With ``condition.adapt=lora`` the adapted pipeline is written to ``pipeline/`` inside it.

    Raises
    ------
    InputError
        For bad input files, a split that leaks, or settings that do not fit together.
    """
    started = time.monotonic()
    settings = config.condition
    out = writable_folder(config.out)
    running = start(config)
    earlier = from_pretrained(config.init)
    source = open_source(config, fitted=earlier.preprocessing)
    banks = source.banks(running.device)
    denoiser = load_denoiser(config.pipeline, running.device)
    model = conditioner(earlier.encoder.to(running.device), denoiser, settings)
    model.train()
    model.encoder.train(settings.train_encoder)
    shown = _pictures(config.pictures, banks, denoiser.image_size, running.device)
    targets = None
    if settings.clip_weight:
        targets = embed_pictures(
            config.pipeline, config.pictures, banks["train"].stimulus_ids, device=running.device
        )
        _check_width(config.init, earlier, targets)
    found = condition(
        model,
        denoiser,
        banks["train"],
        shown["train"],
        banks.get("val"),
        shown.get("val"),
        settings,
        running,
        seed=config.seed,
        targets=targets,
    )
    unet = found.pop("adapted")
    content = {
        **{k: v for k, v in earlier.config.items() if k not in ("memory", "evidence", "context")},
        "base_model": pipeline_fingerprint(config.pipeline),
        **source.record,
        "protocol": source.protocol,
        "trained": [*earlier.config.get("trained", ["train"]), "condition"],
        "validation": {**earlier.config.get("validation", {}), "condition": found},
        "training": {
            "seed": config.seed,
            "device": running.device,
            "seconds": round(time.monotonic() - started, 1),
            "epochs": settings.epochs,
            "head": settings.head,
            "adapt": settings.adapt,
            "null_dropout": settings.null_dropout,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    }
    if is_first_process():
        pretrained = Pretrained(
            encoder=model.encoder.cpu().eval(),
            tokens=earlier.tokens,
            preprocessing=earlier.preprocessing,
            config=content,
            memory=earlier.memory,
            evidence=earlier.evidence,
            context=model.head.cpu().eval(),
        )
        if settings.train_encoder and pretrained.memory is not None:
            content["validation"]["memory"] = _remember_again(
                pretrained, config, source, earlier.config.get("base_model")
            )
        save_pretrained(out, pretrained, card=stage_card("condition", content))
        if unet is not None:
            record = {"base_model": content["base_model"], "condition": asdict(settings)}
            write_pipeline(config.pipeline, out / "pipeline", unet, record)
    return content


def run_refine(config: RefineRunConfig) -> dict[str, Any]:
    """Adapt a pipeline's U-Net to an encoder's tokens; writes a pipeline folder.

    Raises
    ------
    InputError
        For bad input files, a split that leaks, an encoder without tokens.
    """
    started = time.monotonic()
    settings = config.refine
    out = Path(config.out)
    if out.resolve() == Path(config.pipeline).resolve():
        raise InputError(out, "out", "the base pipeline", "another folder")
    running = start(config)
    earlier = from_pretrained(config.init)
    source = open_source(config, fitted=earlier.preprocessing)
    tokens_of = _tokens_of(config.init, earlier, running.device)
    denoiser = load_denoiser(config.pipeline, running.device)
    if settings.variant == "oracle_class":
        banks, shown = _oracle(config, source, denoiser.image_size, running.device)
    else:
        banks = source.banks(running.device)
        shown = _pictures(config.pictures, banks, denoiser.image_size, running.device)
    unet, found = refine(
        denoiser,
        tokens_of,
        banks["train"],
        shown["train"],
        banks.get("val"),
        shown.get("val"),
        settings,
        running,
        seed=config.seed,
    )
    record = {
        "variant": settings.variant,
        "base_model": pipeline_fingerprint(config.pipeline),
        "encoder": earlier.weights_hash,
        "protocol": source.protocol,
        "settings": asdict(settings),
        "trained_parameters": found.pop("trained_parameters"),
        "validation": found,
        "training": {
            "seed": config.seed,
            "device": running.device,
            "seconds": round(time.monotonic() - started, 1),
        },
    }
    if is_first_process():
        write_pipeline(config.pipeline, out, unet, record)
        with whole_file(out / CARD) as temporary:
            temporary.write_text(_refined_card(record), encoding="utf-8")
    return record


def _remember_again(
    pretrained: Pretrained, config: ConditionRunConfig, source: Source, base_model: str | None
) -> dict[str, Any] | str:
    """Fit the memory's and the evidence's temperatures to an encoder that was trained on.

    Both stay where that is possible; else they go, and what is returned says why.
    """
    assert pretrained.memory is not None
    same_space = pretrained.config["base_model"] == base_model
    if not same_space or "val" not in source.parts:
        reason = "no validation trials" if same_space else "another pipeline's embeddings"
        pretrained.memory = pretrained.evidence = None
        return f"left out: {reason}"
    parts = source.parts
    names: dict[str, Sequence[str]] = {
        part: sorted({str(name) for name in parts[part].stimuli}) for part in parts
    }
    targets = picture_targets(
        config.pipeline,
        config.pictures,
        names,
        TargetConfig(**pretrained.config.get("targets", {})),
        device="cpu",
        seed=config.seed,
    )
    seen = dict(zip(names["val"], targets["val"], strict=True))
    return remember(pretrained, pretrained.memory.pictures.clone(), parts["val"], seen)


def _pictures(
    folder: str, banks: dict[str, TrialBank], size: int, device: str
) -> dict[str, Tensor]:
    return {n: picture_bank(folder, b.stimulus_ids, size, device) for n, b in banks.items()}


def _tokens_of(init: str, earlier: Pretrained, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Signals and subjects to context tokens by a frozen encoder, without its memory, which knows
    the training pictures."""
    encoder = earlier.encoder.to(device).eval().requires_grad_(False)
    if earlier.context is not None:
        head = earlier.context.to(device).eval().requires_grad_(False)
        return lambda signals, subjects: head(eeg_tokens(encoder, signals, subjects))
    if earlier.tokens is None:
        expected = "one, from eeg-encoder train, align or condition"
        raise InputError(init, "token head", "none", expected)
    tokens = earlier.tokens.to(device).requires_grad_(False)
    return lambda signals, subjects: tokens(F.normalize(encoder(signals, subjects).float(), dim=1))


def _oracle(
    config: RefineRunConfig, source: Source, size: int, device: str
) -> tuple[dict[str, TrialBank], dict[str, Tensor]]:
    """One trial's averaged signals with every picture of its true category."""
    wanted = config.refine.stimulus
    everything = _every_trial(config, source)
    rows = (everything.stimuli == wanted).nonzero()[0]
    if not len(rows):
        example = str(everything.stimuli[0])
        raise InputError(
            config.recording, "refine.stimulus", wanted, f"a stimulus such as {example}"
        )
    one = everything.select(rows[everything.subjects[rows] == everything.subjects[rows[0]]])
    folder = picture_path(config.pictures, wanted).parent
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    signal = torch.from_numpy(source.preprocessing(one)).mean(0, keepdim=True)
    count = len(files)
    bank = TrialBank(
        signals=signal.to(device),
        members=torch.zeros(count, 1, dtype=torch.long, device=device),
        subjects=torch.full((count,), int(one.subjects[0]), device=device),
        stimuli=torch.arange(count, device=device),
        stimulus_ids=[file.stem for file in files],
    )
    return {"train": bank}, {"train": picture_files(files, size, device)}


def _every_trial(config: RefineRunConfig, source: Source) -> Any:
    """Every trial of the recording, test trials included: the oracle variant's target."""
    return read_recording(
        config.recording,
        source.record["format"],
        source.record["options"],
        window=config.window,
        scale=config.scale,
        subjects=config.subjects,
    )


def _check_width(init: str, earlier: Pretrained, targets: Tensor) -> None:
    width = earlier.encoder.embedding
    if width != targets.shape[1]:
        expected = f"{targets.shape[1]}, of the pipeline's image tower (else clip_weight=0)"
        raise InputError(init, "embedding", width, expected)


def _refined_card(record: dict[str, Any]) -> str:
    lines = ["# Refined pipeline", "", "Written by `eeg-encoder refine`.", ""]
    if record["variant"] == "oracle_class":
        stimulus = record["settings"]["stimulus"]
        lines += [
            f"**Oracle.** Trained on pictures of the true category of `{stimulus}`: an upper",
            "bound, not a decoding result.",
            "",
        ]
    lines += [f"- {name}: {record[name]}" for name in ("base_model", "encoder", "protocol")]
    lines += [
        f"- adapted: {record['settings']['adapt']}, {record['trained_parameters']:,} parameters",
        f"- validation: {record['validation']}",
        f"- training: {record['training']}",
        "",
        CAVEAT,
        "",
    ]
    return "\n".join(lines)
