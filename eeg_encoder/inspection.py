"""What ``eeg-encoder inspect`` does: open, check, describe, draw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import writable_folder, write_json
from .recordings.formats import open_recording, recognise
from .recordings.overview import Overview, overview
from .recordings.perceivelab import load_splits, subject_positions
from .recordings.trials import TrialSet

SHOWN = 8


def inspect_recording(
    recording: str | Path,
    *,
    splits: str | Path | None = None,
    subject: int | None = None,
    out: str | Path | None = None,
    as_json: bool = False,
    format: str | None = None,
    options: Sequence[str] = (),
) -> Overview:
    """Describe a recording on standard output, and in a folder when asked.

    A recording with bad samples is described too; then the reason for which its loader refuses it
    is raised.

    Parameters
    ----------
    recording
        File or folder of any known format.
    splits
        Split file, ``.pth`` or ``.json``.
    subject
        The subject whose trials a single-subject split file counts.
    out
        Folder for ``overview.json`` and ``overview.png``.
    as_json
        Print JSON instead of a table.
    format
        A format's name; default: recognised.
    options
        ``key=value`` for the format's loader; values are read as YAML.

    Raises
    ------
    InputError
        When the recording is refused.
    """
    name = format or recognise(recording)
    given = key_values(options)
    trials, refusal = _opened(recording, name, given)
    parts = None if splits is None else _splits(splits, recording, trials, subject)
    found = overview(trials, parts, progress=True)
    found.summary["format"] = name
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _print_table(found.as_dict(), Path(recording))
    if out is not None:
        _write(found, writable_folder(out), Path(recording))
    if refusal is not None:
        raise refusal
    found.refuse_nonfinite(recording)
    return found


def _opened(
    recording: str | Path, name: str, options: dict[str, Any]
) -> tuple[TrialSet, InputError | None]:
    """The recording, and why its loader refuses it if only for its samples."""
    try:
        return open_recording(recording, name, **options), None
    except InputError as error:
        try:
            return open_recording(recording, name, **{**options, "bad": "keep"}), error
        except InputError:
            raise error from None


def key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as a dictionary; values are read as YAML.

    Raises
    ------
    InputError
        For a word without ``=``.
    """
    from omegaconf import OmegaConf

    for pair in pairs:
        if "=" not in pair:
            raise InputError("command line", "option", pair, "key=value")
    found = OmegaConf.to_container(OmegaConf.from_dotlist(list(pairs)))
    return {str(key): value for key, value in dict(found).items()}  # type: ignore[arg-type]


def _splits(
    path: str | Path, recording: str | Path, trials: TrialSet, subject: int | None
) -> dict[str, np.ndarray]:
    if Path(path).suffix == ".json":
        from .protocols import Split

        parts = Split.load(path).parts()
        for part, index in parts.items():
            if len(index) and index.max() >= trials.total:
                raise InputError(path, part, index.max(), f"positions 0 to {trials.total - 1}")
        return parts
    within = None if subject is None else subject_positions(recording, subject)
    return load_splits(path, trials.total, within=within)


def _write(found: Overview, folder: Path, recording: Path) -> None:
    from .recordings.overview_picture import draw_overview

    write_json(folder / "overview.json", found.as_dict())
    draw_overview(folder / "overview.png", found, title=f"{recording.name}: {_source(found)}")


def _source(found: Overview) -> str:
    return str(found.summary["source"])


def _print_table(summary: dict[str, Any], recording: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=str(recording),
        show_header=False,
        box=None,
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(summary):
        table.add_row(f"{name}:", Text(value))
    Console(highlight=False).print(table)


def _rows(s: dict[str, Any]) -> list[tuple[str, str]]:
    channels, amplitude = s["channels"], s["amplitude"]
    unit = amplitude["unit"]
    repeats = s["repetitions"]
    rows = [
        ("format", f"{s['format']}; {s['source']}"),
        ("trials", f"{s['trials']} of {s['trials_in_file']} in the file"),
        ("channels", f"{channels['count']}, position known of {channels['with_position']}"),
        ("rate", f"{s['sfreq_hz']:g} Hz"),
        ("window", f"{s['window_s'][0]:g} to {s['window_s'][1]:g} s, {s['samples']} samples"),
        ("unit", s["unit"]),
        ("deviation", f"{amplitude['deviation_median']:g} {unit}, median channel"),
        (
            "peak to peak",
            "no whole trial"
            if amplitude["peak_to_peak_median"] is None
            else f"{amplitude['peak_to_peak_median']:g} {unit} median, "
            f"{amplitude['peak_to_peak_largest']:g} largest",
        ),
        ("line noise", _pairs(s["line_noise_db"], " dB over its neighbours") or "not resolved"),
        ("NaN or infinity", _pairs(channels["nonfinite"], " trials") or "none"),
        ("flat channels", _pairs(channels["flat"], " trials") or "none"),
        ("noisy channels", _pairs(channels["noisy"], " robust deviations") or "none"),
        ("categories", f"{s['categories']} of {len(s['trials_of_category'])}"),
        ("trials each", _span(list(s["trials_of_category"].values()))),
        (
            "stimuli",
            f"{s['stimuli']}"
            + (
                f", not known for {s['trials_without_stimulus']} trials"
                if s["trials_without_stimulus"]
                else ""
            ),
        ),
        ("repetitions", f"{repeats[0]} to {repeats[1]}" if repeats else "not known"),
        ("subjects", _pairs(s["trials_of_subject"], " trials")),
        ("sessions", _pairs(s["trials_of_session"], " trials")),
        ("blocks", str(s["blocks"])),
        ("runs", str(s["runs"])),
        ("design", s["design"]),
    ]
    return rows + (_split_rows(s["split"]) if "split" in s else [])


def _split_rows(split: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("split", ", ".join(f"{part} {n}" for part, n in split["trials"].items()))]
    left_out = {part: n for part, n in split["left_out"].items() if n}
    if left_out:
        rows.append(("not loaded", _pairs(left_out, " trials")))
    for pair, shared in split["shared"].items():
        rows.append((pair, "share " + ", ".join(f"{n} {kind}" for kind, n in shared.items())))
    rows.append(("verdict", f"refused: {split['refused']}" if split["refused"] else "no leak"))
    return rows


def _pairs(values: dict[str, Any], after: str) -> str:
    shown = ", ".join(f"{name} ({value:g}{after})" for name, value in list(values.items())[:SHOWN])
    more = len(values) - SHOWN
    return f"{shown}, and {more} more" if more > 0 else shown


def _span(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}, median {np.median(values):g}"
