"""The whole comparison: what ``threestudio-eeg compare`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, writable_folder

from .comparing import Comparison, compare_sources
from .eyes import Eyes
from .pictures import comparison_sheet
from .rows import ROWS_FILE, Source, read_rows
from .runs import GIVEN, Run, is_trial_folder, look_at_runs, read_run
from .tables import write_tables


@dataclass(frozen=True)
class CompareOptions:
    """See ``threestudio-eeg compare --help``."""

    sources: Sequence[str]
    out: Path
    reference: str | None = None
    allowed: Sequence[str] = ()
    objects: Path | None = None
    pictures: Path | None = None
    pipeline: str = "phantom"
    judge: Path | None = None
    size: int = 128
    device: str = "cpu"


def compare(options: CompareOptions) -> tuple[Comparison, dict[str, Path]]:
    """Read, measure, compare, and write tables and sheet into ``options.out``.

    Returns
    -------
    comparison, files
        ``files`` by kind: ``md``, ``csv``, ``json``, ``png``.

    Raises
    ------
    InputError
        For a source that is neither trial folder nor rows, or sources that cannot be compared.
    """
    rows, runs = [], []
    for word in options.sources:
        for name, path, stimulus in _places(word):
            if is_trial_folder(path):
                runs.append(read_run(path, name, stimulus))
            else:
                rows.append(read_rows(path, name))
    _check_runs(runs, options.allowed)
    out = writable_folder(options.out)
    eyes = _eyes(options, rows, runs)
    if runs:
        assert eyes is not None
        rows += look_at_runs(runs, eyes, out / "views", size=options.size, device=options.device)
    comparison = compare_sources(rows, reference=options.reference, allowed=options.allowed)
    if eyes is not None:
        comparison.sets, notes = eyes.set_figures(comparison)
        comparison.notes += notes
    files = write_tables(out, comparison)
    files["png"] = out / "comparison.png"
    with whole_file(files["png"]) as temporary:
        comparison_sheet(comparison, _seen(options)).save(temporary, format="PNG")
    return comparison, files


def _places(word: str) -> list[tuple[str, Path, str | None]]:
    """``[NAME=]PATH[::STIMULUS]``; a folder of trial folders stands for all of them."""
    name, _, rest = word.partition("=") if "=" in word else ("", "", word)
    place, _, stimulus = rest.partition(GIVEN)
    path = Path(place)
    if not path.exists():
        raise InputError(path, "run", "nothing", "a trial folder, or rows of objects")
    if not path.is_dir() or is_trial_folder(path) or (path / ROWS_FILE).is_file():
        return [(name, path, stimulus or None)]
    inside = sorted(folder for folder in path.iterdir() if is_trial_folder(folder))
    if not inside:
        raise InputError(path, "run", "no trial folder", f"configs/ and ckpts/, or {ROWS_FILE}")
    return [(name or folder.name, folder, None) for folder in inside]


def _check_runs(runs: Sequence[Run], allowed: Sequence[str]) -> None:
    """Refuse before anything is rendered."""
    from .protocols import check_comparable

    if runs:
        check_comparable(
            [Source(run.name, run.folder, [], dict(run.protocol)) for run in runs], allowed
        )


def _eyes(options: CompareOptions, rows: Sequence[Source], runs: Sequence[Run]) -> Eyes | None:
    """Networks are loaded for trial folders, and for rows with pictures and a truth."""
    has_pictures = any(row.picture is not None for source in rows for row in source.rows)
    if not runs and not (has_pictures and options.objects is not None):
        return None
    stimuli = [run.stimulus for run in runs if run.stimulus is not None]
    return Eyes.open(
        pipeline=options.pipeline,
        objects=options.objects,
        judge=options.judge,
        pictures=options.pictures,
        stimuli=stimuli,
        device=options.device,
    )


def _seen(options: CompareOptions) -> Any:
    from eeg_encoder.recordings.perceivelab import picture_path

    folder = options.pictures
    if folder is None and options.objects is not None:
        folder = options.objects.parent / "pictures"
    if folder is None or not folder.is_dir():
        return None

    def picture(stimulus: str) -> Path | None:
        try:
            return picture_path(folder, stimulus)
        except InputError:
            return None

    return picture
