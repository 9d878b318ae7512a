"""Recording formats by name, and one function that opens any of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .arrays import load_npz
from .bids import load_bids
from .eeg3d import STAGES, eeg3d_files, load_eeg3d
from .mne_epochs import load_epochs
from .n170 import is_n170, load_n170
from .perceivelab import load_perceivelab
from .pretraining import load_folder
from .things_eeg2 import load_things_eeg2, things_files
from .trials import TrialSet
from .uci import is_uci, load_uci

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """A recording format.

    Parameters
    ----------
    summary
        What it is, in one line.
    recognises
        Whether a path looks like it; nothing large is read.
    load
        ``load(path, **options)``, a TrialSet.
    """

    summary: str
    recognises: Callable[[Path], bool]
    load: Callable[..., TrialSet]


FORMATS: dict[str, Format] = {
    "perceivelab": Format(
        "EEG-ImageNet40 .pth, all bands, and files written here",
        lambda path: path.suffix in (".pth", ".pt"),
        load_perceivelab,
    ),
    "things-eeg2": Format(
        "THINGS-EEG2 preprocessed_eeg_{training,test}.npy, or their folders",
        lambda path: bool(things_files(path)),
        load_things_eeg2,
    ),
    "eeg-3d": Format(
        "EEG-3D (Neuro-3D) process_data_*.npy with name_label.npy, or their folders",
        lambda path: path.name in {file for file, _ in STAGES.values()}
        or any(eeg3d_files(path, stage) for stage in STAGES),
        load_eeg3d,
    ),
    "mne-epochs": Format(
        "epochs written by MNE, -epo.fif",
        lambda path: path.name.endswith((".fif", ".fif.gz")),
        load_epochs,
    ),
    "n170": Format("faces and houses, n170_epochs.npz", is_n170, load_n170),
    "uci": Format("UCI picture matching, smni_{train,test}.npz", is_uci, load_uci),
    "npz": Format(
        "epoched trials in one .npz", lambda path: path.suffix == ".npz", load_npz
    ),
    "bids": Format(
        "a BIDS folder (needs mne-bids)",
        lambda path: (path / "dataset_description.json").is_file(),
        load_bids,
    ),
    "npy-folder": Format(
        "a folder of .npy signals without labels, for pre-training",
        lambda path: path.is_dir() and next(path.rglob("*.npy"), None) is not None,
        load_folder,
    ),
}  # fmt: skip
"""Formats by name, the more particular ones first."""


def open_recording(source: Any, format: str | None = None, **options: Any) -> TrialSet:
    """Open a recording of any known format.

    Parameters
    ----------
    source
        File or folder, or an ``mne.Epochs`` object.
    format
        A name in :data:`FORMATS`; default: recognised from the path and what is in it.
    **options
        Of the format's loader.

    Returns
    -------
    TrialSet
        ``source`` says what was found.

    Raises
    ------
    InputError
        When no format fits, an option is not one of the loader's, or the loader refuses the file.

    Examples
    --------
    >>> trials = open_recording("sub-01", channels="posterior")  # doctest: +SKIP
    """
    if not isinstance(source, (str, Path)):
        return load_epochs(source, **_checked_options("mne-epochs", source, options))
    path = Path(source)
    name = format or recognise(path)
    if name not in FORMATS:
        raise InputError(path, "format", name, f"one of {', '.join(FORMATS)}")
    trials = FORMATS[name].load(path, **_checked_options(name, path, options))
    log.info("%s: %s (format %s)", path, trials.source, name)
    return trials


def recognise(path: str | Path) -> str:
    """Name of the format that a path looks like.

    Raises
    ------
    InputError
        When nothing is there, or no format fits.
    """
    path = Path(path)
    for name, known in FORMATS.items():
        if known.recognises(path):
            return name
    found = "an unknown layout" if path.exists() else "nothing"
    raise InputError(path, "file", found, f"a recording: {', '.join(FORMATS)}")


def options_of(format: str) -> dict[str, inspect.Parameter]:
    """Options of a format's loader by name."""
    parameters = inspect.signature(FORMATS[format].load).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def _checked_options(name: str, where: object, options: dict[str, Any]) -> dict[str, Any]:
    known = options_of(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        expected = f"options of {name}: {', '.join(known)}"
        raise InputError(where, f"option {unknown[0]}", "no such option", expected)
    missing = [n for n, p in known.items() if p.default is p.empty and n not in options]
    if missing:
        raise InputError(where, f"option {missing[0]}", "nothing", f"a value, for format {name}")
    return options
