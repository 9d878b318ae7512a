"""From a config to a recording, its parts, and signals that a network reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError
from .preprocessing import Preprocessing
from .protocols import Split, find_protocol
from .recordings.formats import open_recording, recognise
from .recordings.perceivelab import load_splits
from .recordings.splits import check_split
from .recordings.trials import TrialSet
from .settings import SourceConfig
from .stages.batches import TrialBank

UNLABELLED = "npy-folder"


@dataclass
class Source:
    """A recording, divided and preprocessed.

    Parameters
    ----------
    parts
        Trials of ``train`` and ``val``; the latter may be absent.
    preprocessing
        Fitted on ``train``.
    signals
        Of each part, (N, C, T) float32.
    record
        What reading the same recording again takes, for the encoder's config: ``recording``
        (its name), ``format``, ``options``, ``window``, ``scale``.
    protocol
        How it was divided.
    """

    parts: dict[str, TrialSet]
    preprocessing: Preprocessing
    signals: dict[str, np.ndarray]
    record: dict[str, Any]
    protocol: dict[str, Any]

    def banks(self, device: str | torch.device) -> dict[str, TrialBank]:
        """Parts as banks of trials on a device."""
        return {
            name: TrialBank.of(part, self.signals[name], device)
            for name, part in self.parts.items()
        }

    def model_settings(self, embedding: int, model: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a model: the recording's sizes, then what ``model`` says."""
        return {
            "channels": len(self.preprocessing.output_channels),
            "samples": self.preprocessing.output_samples,
            "embedding": embedding,
            "subjects": sorted({int(number) for number in self.parts["train"].subjects}),
            **{key: value for key, value in model.items() if key != "name"},
        }


def open_source(
    config: SourceConfig, *, whole: bool = False, fitted: Preprocessing | None = None
) -> Source:
    """Open, divide, and preprocess a recording as a config says.

    Parameters
    ----------
    whole
        Without a split, take every trial of an unlabelled recording for training.
    fitted
        An earlier stage's preprocessing, in place of a new one.

    Raises
    ------
    InputError
        For bad files, a split that leaks, or none where one is needed.
    """
    form = config.format or recognise(config.recording)
    trials = read_recording(
        config.recording,
        form,
        config.options,
        window=config.window,
        scale=config.scale,
        subjects=config.subjects,
    )
    parts, protocol = _divide(config, trials, whole and form == UNLABELLED)
    if not len(parts["train"]):
        raise InputError(config.splits or config.recording, "train", "no trials", "at least one")
    parts = {name: part for name, part in parts.items() if len(part)}
    preprocessing = fitted
    if preprocessing is None:
        preprocessing = Preprocessing(**asdict(config.preprocessing))
        preprocessing.fit(parts["train"], seed=config.seed)
    return Source(
        parts=parts,
        preprocessing=preprocessing,
        signals={name: preprocessing(part) for name, part in parts.items()},
        record={
            "recording": Path(config.recording).name,
            "format": form,
            "options": dict(config.options),
            "window": list(config.window),
            "scale": config.scale,
        },
        protocol=protocol,
    )


def read_recording(
    path: str | Path,
    format: str | None = None,
    options: dict[str, Any] | None = None,
    *,
    window: list[int] | tuple[int, ...] = (20, 460),
    scale: float = 1.0,
    subjects: list[int] | None = None,
) -> TrialSet:
    """A recording of any format; ``window`` and ``scale`` are of the perceivelab format.

    Raises
    ------
    InputError
        For bad files or options, and for subjects that the recording does not have.
    """
    form = format or recognise(path)
    given = dict(options or {})
    if form == "perceivelab":
        if len(window) != 2:
            raise InputError("config", "window", list(window), "two samples, first and last")
        given = {"window": tuple(window), "scale": scale, "subjects": subjects, **given}
        return open_recording(path, form, **given)
    trials = open_recording(path, form, **given)
    if subjects is None:
        return trials
    absent = sorted(set(subjects) - set(trials.subjects.tolist()))
    if absent:
        known = np.unique(trials.subjects).tolist()
        raise InputError(path, "subjects", f"no {absent[0]}", f"some of {known}")
    return trials.select(np.isin(trials.subjects, subjects))


def read_again(
    path: str | Path,
    config: dict[str, Any],
    format: str | None = None,
    options: dict[str, Any] | None = None,
) -> TrialSet:
    """A recording read as an encoder's config says; ``format`` and ``options`` override it.

    The format of the training recording is used only where the file looks like it.

    Raises
    ------
    InputError
        As :func:`read_recording`.
    """
    form = format or recognise(path)
    kept = config.get("options", {}) if form == config.get("format", form) else {}
    return read_recording(
        path,
        form,
        {**kept, **(options or {})},
        window=config.get("window", (20, 460)),
        scale=config.get("scale", 1.0),
    )


def read_split(path: str | Path, trials: TrialSet, split: int = 0) -> dict[str, np.ndarray]:
    """Positions of each part from a split file, ``.pth`` or ``.json``.

    Raises
    ------
    InputError
        When the file is not one, or has positions that the recording does not have.
    """
    if Path(path).suffix != ".json":
        return load_splits(path, trials.total, split)
    parts = Split.load(path).parts()
    for part, index in parts.items():
        if len(index) and index.max() >= trials.total:
            raise InputError(path, part, index.max(), f"positions 0 to {trials.total - 1}")
    return parts


def protocol_split(settings: dict[str, Any], trials: TrialSet, seed: int) -> Split:
    """One split of a protocol given as ``name``, ``fold`` and its parameters.

    Raises
    ------
    InputError
        For an unknown protocol, parameter or fold, or a recording that it cannot divide.
    """
    given: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()
    }
    name, fold = given.pop("name", None), given.pop("fold", 0)
    if name is None:
        raise InputError("config", "protocol.name", "nothing", "a protocol's name")
    splits = list(find_protocol(str(name), **{"seed": seed, **given}).splits(trials))
    if not (isinstance(fold, int) and 0 <= fold < len(splits)):
        raise InputError("config", "protocol.fold", fold, f"0 to {len(splits) - 1}")
    return splits[fold]


def _divide(
    config: SourceConfig, trials: TrialSet, whole: bool
) -> tuple[dict[str, TrialSet], dict[str, Any]]:
    if config.splits and config.protocol:
        raise InputError("config", "protocol", "a split file as well", "one of the two")
    if config.protocol:
        chosen = protocol_split(dict(config.protocol), trials, config.seed)
        index, protocol = chosen.parts(), {"name": chosen.name, **chosen.description}
    elif config.splits:
        index = read_split(config.splits, trials, config.split)
        protocol = check_split(
            trials, index, where=config.splits, allow_within_block=config.allow_within_block
        )
    elif whole:
        return {"train": trials}, {"split": "none: unlabelled", "train_trials": len(trials)}
    else:
        raise InputError(
            config.recording,
            "splits",
            "nothing",
            "a value, for example splits=PATH or protocol.name=k-fold-by-stimulus: without one, "
            "test trials would be trained on",
        )
    return {name: trials.at(index[name]) for name in ("train", "val")}, protocol
