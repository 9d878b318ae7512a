"""Rows of a comparison: one object each, and where they were read from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError

ROWS_FILE = "results.jsonl"
SETTINGS_FILE = "settings.json"
NOT_PROTOCOL = ("conditioning", "controls", "device", "overlays", "judge", "objects")
"""Settings of a batch of objects that two sources may differ in."""


@dataclass(frozen=True)
class Row:
    """One object: its condition, what was seen (``trial``), the seed, and its figures."""

    condition: str
    trial: str
    seed: int
    figures: Mapping[str, Any]
    picture: Path | None = None


@dataclass(frozen=True)
class Source:
    """Objects that were made alike.

    Parameters
    ----------
    name
        As given on the command line, or the folder's.
    path
        Where the rows are from, for messages.
    rows
        The objects.
    protocol
        Flat, by dotted key: what a source must share with the others. Empty where it was not
        recorded.
    representation
        Name of the 3D representation, or the empty text where it was not recorded.
    failed
        Objects that could not be made, by condition.
    """

    name: str
    path: Path
    rows: list[Row]
    protocol: dict[str, Any] = field(default_factory=dict)
    representation: str = ""
    failed: dict[str, int] = field(default_factory=dict)


def read_rows(path: str | Path, name: str = "") -> Source:
    """Read the rows that ``benchmarks/phantom_objects.py`` writes.

    Parameters
    ----------
    path
        Its output folder, or a file of its rows alone (``.jsonl``); such a file says nothing of
        the protocol.

    Raises
    ------
    InputError
        When the file is missing, is no JSON lines, or holds a row without condition, stimulus or
        seed, or no object.
    """
    path = Path(path)
    file = path / ROWS_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(file, "file", "nothing", "rows of objects (JSON lines)")
    entries = _last_of_each(file, _json_lines(file))
    made = [entry for entry in entries if "error" not in entry]
    if not made:
        raise InputError(file, "objects", "none", "at least one that was made")
    settings = _settings(file.with_name(SETTINGS_FILE)) if path.is_dir() else {}
    views = file.with_name("views")
    return Source(
        name=name or path.stem,
        path=path,
        rows=[_row(file, entry, views) for entry in made],
        protocol={key: value for key, value in settings.items() if key not in NOT_PROTOCOL},
        representation=",".join(Path(o).stem for o in settings.get("overlays", [])),
        failed=_counts(entry["condition"] for entry in entries if "error" in entry),
    )


def _json_lines(file: Path) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(file, f"line {number}", error, "a JSON object") from error
        if not isinstance(entry, dict):
            raise InputError(file, f"line {number}", type(entry).__name__, "a JSON object")
        entries.append(entry)
    return entries


def _last_of_each(file: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A later row of the same object replaces an earlier one."""
    latest: dict[tuple[str, str, int], dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        for name, kind in (("condition", str), ("stimulus", str), ("seed", int)):
            if not isinstance(entry.get(name), kind):
                expected = f"a row with {name}, as phantom_objects.py writes it"
                raise InputError(file, f"row {number}: {name}", entry.get(name), expected)
        latest[entry["condition"], entry["stimulus"], entry["seed"]] = entry
    return list(latest.values())


def _row(file: Path, entry: Mapping[str, Any], views: Path) -> Row:
    key = entry.get("key", f"{entry['condition']}-{entry['stimulus']}-{entry['seed']}")
    picture = views / f"{key}.png"
    return Row(
        entry["condition"],
        entry["stimulus"],
        entry["seed"],
        entry,
        picture if picture.is_file() else None,
    )


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(file, "file", error, "JSON") from error


def _counts(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
