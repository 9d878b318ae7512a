"""Settings of the training commands: YAML files and ``key=value`` overrides into dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar

import torch

from .errors import InputError
from .preprocessing.pipeline import PreprocessingSettings
from .stages.running import Running

T = TypeVar("T", bound="RunConfig")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class RunConfig:
    """How a command runs.

    Parameters
    ----------
    out
        Folder to write.
    device, devices, precision
        ``auto``, ``cpu`` or ``cuda``; how many of them (more than one: DistributedDataParallel);
        Lightning's precision.
    seed, progress, threads
        Seed; progress bars; CPU threads, 0 for torch's own choice.
    resume
        Go on from the checkpoint in ``out``, if there is one.
    """

    out: str = "outputs/encoder"
    device: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    seed: int = 0
    progress: bool = True
    threads: int = 0
    resume: bool = False


@dataclass
class SourceConfig(RunConfig):
    """A recording, how it is divided, how it is preprocessed.

    Parameters
    ----------
    recording, format, options
        File or folder; a format's name (default: recognised); options of its loader.
    splits, split
        Split file, ``.pth`` or a protocol's ``.json``; which split of a ``.pth``.
    protocol
        In place of a split file: ``name``, parameters of that protocol, and ``fold`` (default 0).
    subjects
        Which subjects; null for all.
    window, scale
        Of the perceivelab format: samples kept, factor to volts.
    allow_within_block
        Train although the split cuts through the blocks of a block design; figures are marked.
    preprocessing
        See :class:`eeg_encoder.preprocessing.pipeline.PreprocessingSettings`.
    """

    recording: str = "???"
    format: Optional[str] = None  # noqa: UP045
    options: dict[str, Any] = field(default_factory=dict)
    splits: Optional[str] = None  # noqa: UP045
    split: int = 0
    protocol: dict[str, Any] = field(default_factory=dict)
    subjects: Optional[list[int]] = None  # noqa: UP045
    window: list[int] = field(default_factory=lambda: [20, 460])
    scale: float = 1.0
    allow_within_block: bool = False
    preprocessing: PreprocessingSettings = field(default_factory=PreprocessingSettings)


def load_config(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
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
            OmegaConf.structured(kind),
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


def start(config: RunConfig) -> Running:
    """Set threads and seed, and say where and how the stages of a command run.

    Raises
    ------
    InputError
        For a device, number of devices or precision that is not there.
    """
    device = resolve_device(config.device)
    if config.precision not in PRECISIONS:
        raise InputError("config", "precision", config.precision, f"one of {', '.join(PRECISIONS)}")
    here = torch.cuda.device_count() if device == "cuda" else 1 << 10
    if not 1 <= config.devices <= here:
        raise InputError("config", "devices", config.devices, f"1 to {here}")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    running = Running(
        device=device,
        precision=config.precision,
        logs=Path(config.out) / "logs",
        progress=config.progress,
        devices=config.devices,
        checkpoints=Path(config.out) / "checkpoints",
        resume=config.resume,
    )
    running.take_device()
    return running
