"""What a page about a trial is made from, read from its folder and the recording beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from eeg_encoder.errors import InputError


def trial_folder(path: str | Path) -> Path:
    """The trial folder meant: the path itself, or the only one in ``path/run`` or ``path``.

    Raises
    ------
    InputError
        When there is none, or more than one.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(path, "run", "nothing", "a trial folder")
    if (path / "configs" / "parsed.yaml").is_file():
        return path
    for place in (path / "run", path):
        found = sorted(file.parent.parent for file in place.glob("*/configs/parsed.yaml"))
        if len(found) == 1:
            return found[0]
        if found:
            expected = f"one of them, as {found[0]}, or --index for a page of all"
            raise InputError(path, "run", f"{len(found)} trial folders", expected)
    raise InputError(path, "configs/parsed.yaml", "nothing", "a trial folder")


def recording_beside(trial: Path) -> Path | None:
    """The ``recording/`` folder that the demo leaves two folders up, if there."""
    folder = trial.resolve().parent.parent / "recording"
    return folder if (folder / "recording.pth").is_file() else None


def latest_curves(trial: Path) -> Path | None:
    """The newest ``metrics.csv`` of a trial."""
    found = sorted(trial.glob("csv_logs/*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def figures_beside(trial: Path) -> dict[str, Any]:
    """``metrics.json`` of the trial's folder, or the demo's if it is about this trial."""
    for file in (trial / "metrics.json", trial.resolve().parent.parent / "metrics.json"):
        if file.is_file():
            figures = read_object(file)
            own = figures.get("seen", {}).get("trial", trial.name) == trial.name
            if own or file.parent == trial:
                return figures
    return {}


def provenance(trial: Path, record: dict[str, Any], *, command: str) -> dict[str, Any]:
    """Names to values for the page: command, seed, commit, conditioning and config."""
    file = trial / "provenance.json"
    run = read_object(file) if file.is_file() else {"host": "upstream"}
    made = trial / "cmd.txt"
    words = made.read_text(encoding="utf-8").strip() if made.is_file() else command
    kept = {name: run[name] for name in KEPT if run.get(name) is not None}
    return {
        "command": words,
        **kept,
        **({"conditioning_sha256": record.get("conditioning_sha256")} if record else {}),
        **({"conditioning": record} if record else {}),
        "config": (trial / "configs" / "parsed.yaml").read_text(encoding="utf-8"),
    }


KEPT = ("seed", "host", "commit", "device", "packages", "started")


def read_object(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises
    ------
    InputError
        When it cannot be read or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(file, "file", error, "JSON") from error
    if not isinstance(content, dict):
        raise InputError(file, "file", type(content).__name__, "a JSON object")
    return content


def average_response(trials: Any, stimulus: str, *, what: str = "trials") -> dict[str, Any]:
    """Mean over the trials of one stimulus: signals (C, T) in volts, for the page.

    Raises
    ------
    InputError
        When no trial shows the stimulus.
    """
    from eeg_encoder.recordings.perceivelab import WINDOW

    own = trials.select(_rows(trials, stimulus))
    return {
        "signals": own.signals.mean(axis=0),
        "channels": own.channels,
        "sfreq": own.sfreq,
        "tmin": WINDOW[0] / own.sfreq,
        "description": f"mean of {len(own)} {what}",
    }


def encoder_saliency(
    trials: Any, stimulus: str, encoder: str | Path, target: np.ndarray, *, device: str = "cpu"
) -> dict[str, Any]:
    """What the encoder used in the mean response to a stimulus.

    Parameters
    ----------
    trials
        The recording, as the encoder's loader gives it.
    encoder
        Folder of the EEG encoder.
    target
        (P,) what the encoder's answer is compared with: the embedding of the picture, or the
        answer that the conditioning file keeps.

    Returns
    -------
    dict
        As `looked.looked` takes it.
    """
    import torch

    from eeg_encoder.evaluation.saliency import saliency
    from eeg_encoder.pretrained import from_pretrained

    pretrained = from_pretrained(encoder, device=device)
    own = trials.select(_rows(trials, stimulus)).average()
    pre = pretrained.preprocessing
    shares = saliency(
        pretrained.encoder,
        torch.from_numpy(pre(own)).to(device),
        torch.from_numpy(own.subjects).to(device),
        torch.as_tensor(target)[None].expand(len(own), -1).to(device),
    )
    sfreq = pre.output_samples * pre.input_sfreq / pre.samples
    tmin = pre.tmin
    if pre.window:
        sfreq, tmin = pre.output_samples / (pre.window[1] - pre.window[0]), pre.window[0]
    return {
        "shares": shares.cpu().numpy(),
        "channels": list(pre.output_channels),
        "sfreq": sfreq,
        "tmin": tmin,
    }


def _rows(trials: Any, stimulus: str) -> np.ndarray:
    rows = np.flatnonzero(trials.stimuli == stimulus)
    if not len(rows):
        raise InputError("recording", "stimulus", f"no trial of {stimulus}", "a stimulus it shows")
    return rows
