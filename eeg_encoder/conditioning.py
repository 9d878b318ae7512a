"""The seam: what an encoder hands to a diffusion model, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .files import whole_file

FORMAT = "threestudio-eeg conditioning"
FORMAT_VERSION = 1
TENSORS = {"tokens": 3, "null_tokens": 2, "pooled": 2}


@dataclass
class Trial:
    """What a row of the conditioning was recorded from.

    Parameters
    ----------
    id
        Unique in its file.
    subject
        Number of the subject.
    stimulus
        Picture id.
    label
        Category of the picture: a word or a WordNet id. For reports and figures only.
    """

    id: str
    subject: int
    stimulus: str
    label: str


@dataclass
class Conditioning:
    """EEG as a diffusion model reads it.

    Parameters
    ----------
    tokens
        (N, L, D) float32, for cross-attention.
    null_tokens
        (L, D) float32, the unconditional branch.
    pooled
        (N, P) float32, in the image-embedding space.
    trials
        N entries.
    base_model
        :func:`pipeline_fingerprint` of the pipeline that the tokens are meant for.
    encoder
        SHA-256 of the encoder's weights.
    preprocessing
        What was done to the signals.
    protocol
        Split, repetitions, averaging and so on.
    """

    tokens: Tensor
    null_tokens: Tensor
    pooled: Tensor
    trials: list[Trial]
    base_model: str
    encoder: str
    preprocessing: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trials)

    def index_of(self, trial: int | str) -> int:
        """Row of a trial, given as a row number (also as text) or as an id.

        Raises
        ------
        InputError
            When there is no such trial.
        """
        ids = [entry.id for entry in self.trials]
        if str(trial) in ids:
            return ids.index(str(trial))
        if str(trial).lstrip("-").isdigit() and 0 <= int(trial) < len(ids):
            return int(trial)
        expected = f"0 to {len(ids) - 1}, or an id such as {ids[0]}"
        raise InputError("conditioning", "trial", trial, expected)


def save_conditioning(path: str | Path, conditioning: Conditioning) -> None:
    """Write a conditioning file, whole or not at all.

    Raises
    ------
    InputError
        When shapes disagree, a value is not finite or the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {
        name: getattr(conditioning, name).detach().to("cpu", torch.float32).contiguous()
        for name in TENSORS
    }
    _check(path, tensors, len(conditioning.trials))
    header = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "base_model": conditioning.base_model,
        "encoder": conditioning.encoder,
        "preprocessing": json.dumps(conditioning.preprocessing),
        "protocol": json.dumps(conditioning.protocol),
        "trials": json.dumps([asdict(trial) for trial in conditioning.trials]),
    }
    with whole_file(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))


def load_conditioning(path: str | Path) -> Conditioning:
    """Read and check a conditioning file.

    Raises
    ------
    InputError
        When the file is missing, truncated or foreign, has another version, or a tensor has the
        wrong shape or type or holds NaN or infinity.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(path, "file", "nothing", "a conditioning file (safetensors)")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            _check_version(path, header)
            tensors = {name: file.get_tensor(name) for name in TENSORS if name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(path, "file", str(error).splitlines()[0], "a safetensors file") from error
    try:
        trials = [Trial(**entry) for entry in json.loads(header["trials"])]
        preprocessing = json.loads(header["preprocessing"])
        protocol = json.loads(header["protocol"])
        base_model, encoder = header["base_model"], header["encoder"]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}"
        raise InputError(path, "metadata", reason, f"{FORMAT} version {FORMAT_VERSION}") from error
    _check(path, tensors, len(trials))
    return Conditioning(
        **tensors,
        trials=trials,
        base_model=base_model,
        encoder=encoder,
        preprocessing=preprocessing,
        protocol=protocol,
    )


def pipeline_fingerprint(folder: str | Path) -> str:
    """``<folder name>:<12 hex digits>``, of the configs of U-Net and text encoder.

    The digits begin the SHA-256 of ``unet/config.json`` and ``text_encoder/config.json``.

    Raises
    ------
    InputError
        When the folder is not a pipeline.
    """
    folder = Path(folder).resolve()
    digest = hashlib.sha256()
    for part in ("unet", "text_encoder"):
        file = folder / part / "config.json"
        if not file.is_file():
            raise InputError(folder, f"{part}/config.json", "nothing", "a diffusers pipeline")
        digest.update(file.read_bytes())
    return f"{folder.name}:{digest.hexdigest()[:12]}"


def refined_from(folder: str | Path) -> str | None:
    """Fingerprint of the pipeline that a folder was refined from (``eeg-encoder refine``), which
    reads the same tokens; None for any other folder.

    Raises
    ------
    InputError
        When ``refine.json`` is damaged.
    """
    file = Path(folder) / "refine.json"
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["base_model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise InputError(file, "base_model", reason, "a fingerprint") from error


def _check_version(path: Path, header: dict[str, str]) -> None:
    if header.get("format") != FORMAT:
        found = header.get("format", "another kind of safetensors file")
        raise InputError(path, "format", found, FORMAT)
    if header.get("version") != str(FORMAT_VERSION):
        raise InputError(path, "version", header.get("version"), FORMAT_VERSION)


def _check(path: str | Path, tensors: dict[str, Tensor], n_trials: int) -> None:
    for name, dims in TENSORS.items():
        if name not in tensors:
            raise InputError(path, name, "nothing", f"a tensor of {dims} dimensions")
        tensor = tensors[name]
        if tensor.ndim != dims or 0 in tensor.shape:
            raise InputError(path, name, f"shape {tuple(tensor.shape)}", f"{dims} dimensions")
        if tensor.dtype != torch.float32:
            raise InputError(path, name, str(tensor.dtype), "torch.float32")
        if not bool(tensor.isfinite().all()):
            raise InputError(path, name, "NaN or infinity", "finite values")
    tokens, null = tensors["tokens"], tensors["null_tokens"]
    if tokens.shape[1:] != null.shape:
        expected = f"{tuple(tokens.shape[1:])}, as tokens"
        raise InputError(path, "null_tokens", f"shape {tuple(null.shape)}", expected)
    for name in ("tokens", "pooled"):
        if len(tensors[name]) != n_trials:
            raise InputError(path, name, f"{len(tensors[name])} rows", f"{n_trials}, one a trial")
