"""Conditioning files for the conditions that EEG is compared with."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.conditioning import Conditioning, pipeline_fingerprint
from eeg_encoder.errors import InputError
from eeg_encoder.image_space import embed_pictures
from eeg_encoder.recordings.perceivelab import PICTURE_SUFFIXES

KINDS = ("image", "class-mean", "label", "shuffled")
MAX_CLASS_PICTURES = 200


def control_conditioning(
    conditioning: Conditioning,
    kind: str,
    *,
    pipeline: str | Path,
    pictures: str | Path | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Conditioning:
    """The trials of a conditioning file, conditioned on something else.

    Trials keep their ids, stimuli and labels, so conditions pair up; ``protocol`` gets
    ``condition`` and ``control``.

    Parameters
    ----------
    conditioning
        Of EEG.
    kind
        ``image``: the picture seen, by the pipeline's image tower and image projection: the upper
        bound of what any decoding of that embedding can do. ``class-mean``: the mean embedding of
        other pictures of the same class, none of them a stimulus of the file: what knowing the
        class gives. ``label``: the text encoder's tokens of the label, "a mug". ``shuffled``: the
        EEG of another trial, of another label where there are enough.
    pipeline
        Pipeline folder that the file was made for.
    pictures
        ImageNet-style folder, for ``image`` and ``class-mean``.
    seed
        Of the shuffle.

    Raises
    ------
    InputError
        For an unknown kind, another pipeline, or missing pictures or networks.
    """
    if kind not in KINDS:
        raise InputError("control", "kind", kind, ", ".join(KINDS))
    folder = Path(pipeline)
    fingerprint = pipeline_fingerprint(folder)
    if conditioning.base_model != fingerprint:
        raise InputError(folder, "base model", fingerprint, conditioning.base_model)
    make: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "image": lambda: _images(conditioning, folder, _needed(pictures, kind), device),
        "class-mean": lambda: _class_means(conditioning, folder, _needed(pictures, kind), device),
        "label": lambda: _labels(conditioning, folder, device),
        "shuffled": lambda: _shuffled(conditioning, seed),
    }
    tokens, pooled = make[kind]()
    condition = {"class-mean": "class", "label": "class"}.get(kind, kind)
    protocol = {**conditioning.protocol, "condition": condition, "control": kind}
    if kind == "shuffled":
        protocol["seed"] = seed
    return replace(conditioning, tokens=tokens, pooled=pooled, protocol=protocol)


def derangement(labels: Sequence[str], seed: int = 0) -> list[int]:
    """For every row another one, of another label where no label has more than half of the rows."""
    names = sorted(set(labels))
    random.Random(seed).shuffle(names)
    order = sorted(range(len(labels)), key=lambda row: (names.index(labels[row]), row))
    most = max(list(labels).count(name) for name in names)
    shift = most if 2 * most <= len(order) else 1
    partner = {row: order[(i + shift) % len(order)] for i, row in enumerate(order)}
    return [partner[row] for row in range(len(labels))]


def _images(
    conditioning: Conditioning, pipeline: Path, pictures: Path, device: str
) -> tuple[Tensor, Tensor]:
    stimuli = [trial.stimulus for trial in conditioning.trials]
    unique = sorted(set(stimuli))
    embedded = embed_pictures(pipeline, pictures, unique, device=device)
    pooled = embedded[[unique.index(stimulus) for stimulus in stimuli]]
    return _to_tokens(pipeline, pooled), pooled


def _class_means(
    conditioning: Conditioning, pipeline: Path, pictures: Path, device: str
) -> tuple[Tensor, Tensor]:
    seen = {trial.stimulus for trial in conditioning.trials}
    means: dict[str, Tensor] = {}
    for wnid in sorted({stimulus.rpartition("_")[0] for stimulus in seen}):
        others = [name for name in _pictures_of(pictures / wnid) if name not in seen]
        if not others:
            expected = "pictures of this class that the conditioning file does not have"
            raise InputError(pictures / wnid, "pictures", "none", expected)
        embedded = embed_pictures(pipeline, pictures, others[:MAX_CLASS_PICTURES], device=device)
        means[wnid] = F.normalize(embedded.mean(dim=0), dim=0)
    pooled = torch.stack(
        [means[trial.stimulus.rpartition("_")[0]] for trial in conditioning.trials]
    )
    return _to_tokens(pipeline, pooled), pooled


def _pictures_of(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(path.stem for path in folder.iterdir() if path.suffix in PICTURE_SUFFIXES)


def _labels(conditioning: Conditioning, pipeline: Path, device: str) -> tuple[Tensor, Tensor]:
    from ..pipeline import load_pipeline

    networks = load_pipeline(pipeline, device=device, parts=("tokenizer", "text_encoder"))
    if networks.text_encoder is None or networks.tokenizer is None:
        raise InputError(pipeline, "text_encoder", "nothing", "a text encoder, for label")
    labels = [trial.label for trial in conditioning.trials]
    unique = sorted(set(labels))
    tokens = networks.encode_text([_caption(label) for label in unique]).float().cpu()
    if tokens.shape[1:] != conditioning.tokens.shape[1:]:
        found, expected = tuple(tokens.shape[1:]), tuple(conditioning.tokens.shape[1:])
        raise InputError(pipeline, "shape of text tokens", found, f"{expected}, as the file's")
    return tokens[[unique.index(label) for label in labels]], conditioning.pooled


def _caption(label: str) -> str:
    return f"{'an' if label[:1].lower() in set('aeiou') else 'a'} {label}"


def _shuffled(conditioning: Conditioning, seed: int) -> tuple[Tensor, Tensor]:
    rows = derangement([trial.label for trial in conditioning.trials], seed)
    return conditioning.tokens[rows], conditioning.pooled[rows]


def _to_tokens(pipeline: Path, pooled: Tensor) -> Tensor:
    from ..pipeline import load_pipeline

    networks = load_pipeline(pipeline, device="cpu", parts=("image_projection",))
    if networks.image_projection is None:
        raise InputError(pipeline, "image_projection", "nothing", "one, to make tokens of pictures")
    with torch.no_grad():
        return networks.image_projection(pooled).float()


def _needed(pictures: str | Path | None, kind: str) -> Path:
    if pictures is None:
        raise InputError("command line", "--pictures", "nothing", f"a picture folder, for {kind}")
    return Path(pictures)
