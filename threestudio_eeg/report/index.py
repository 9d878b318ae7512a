"""One page of links and pictures for a folder of runs."""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file

from .material import read_object
from .pictures import picture

CARD_PIXELS = 260
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p class="subtitle">$count</p>
</header>
<main><ul class="runs">$cards</ul></main>
<footer><p>Made by threestudio-eeg. This page loads nothing from outside.</p></footer>
</body>
</html>
"""


def write_index(folder: str | Path) -> Path:
    """Write ``index.html`` with a card for every trial below a folder.

    A card leads to the trial's ``report.html``, or to the demo's that is about it; one without a
    report says which command writes it.

    Raises
    ------
    InputError
        When the folder is not there or holds no trial.
    """
    folder = Path(folder)
    trials = sorted(file.parent.parent for file in folder.rglob("configs/parsed.yaml"))
    if not trials:
        found = "no trial folder" if folder.is_dir() else "nothing"
        raise InputError(folder, "runs", found, "a folder with runs in it")
    reports = [_report_of(trial, folder) for trial in trials]
    ready = sum(report is not None for report in reports)
    page = Template(PAGE).substitute(
        style=files(__package__).joinpath("style.css").read_text(encoding="utf-8"),
        title=escape(folder.resolve().name),
        count=f"{len(trials)} {'run' if len(trials) == 1 else 'runs'}, {ready} with a report.",
        cards="".join(
            _card(trial, report, folder) for trial, report in zip(trials, reports, strict=True)
        ),
    )
    path = folder / "index.html"
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _report_of(trial: Path, folder: Path) -> Path | None:
    """The trial's report, or the demo's two folders up if the demo has no other trial."""
    own, above = trial / "report.html", trial.parent.parent / "report.html"
    if own.is_file():
        return own
    inside = above.parent == folder or folder in above.parent.parents
    alone = len(list(trial.parent.glob("*/configs/parsed.yaml"))) == 1
    return above if inside and alone and above.is_file() else None


def _card(trial: Path, report: Path | None, folder: Path) -> str:
    name = trial.relative_to(folder).as_posix() if trial != folder else trial.resolve().name
    words = f'<div class="words"><h2>{escape(name)}</h2><p class="note">{_line(trial)}</p>'
    if report is None:
        words += f"<pre tabindex=0>{escape(f'threestudio-eeg report {trial}')}</pre>"
    inside = f"{_thumbnail(trial, report, name)}{words}</div>"
    if report is not None:
        link = quote(os.path.relpath(report, folder).replace(os.sep, "/"))
        inside = f'<a href="{escape(link, quote=True)}">{inside}</a>'
    return f'<li class="card">{inside}</li>'


def _thumbnail(trial: Path, report: Path | None, name: str) -> str:
    """The front of the object, as evaluated or as last validated."""
    views = [] if report is None else [report.parent / "views" / "000.png"]
    saved = sorted(trial.glob("save/it*-0.png"), key=lambda path: path.stat().st_mtime)
    front = next((path for path in [*views, *saved[::-1]] if path.is_file()), None)
    if front is None:
        return '<div class="blank" aria-hidden="true"></div>'
    return picture(_square(front), f"The object of {name}", pixels=CARD_PIXELS)


def _square(path: Path) -> Any:
    """The left square of a picture: validation sheets stand side by side."""
    from ..evaluation.views import open_picture

    image = open_picture(path)
    side = min(image.size)
    return image.crop((0, 0, side, side))


def _line(trial: Path) -> str:
    """Seed, host and label in one line."""
    parts = []
    for file, names in (("conditioning.json", ()), ("provenance.json", ("host", "seed"))):
        if not (trial / file).is_file():
            continue
        content = read_object(trial / file)
        parts += [str(content["trial"]["label"])] if isinstance(content.get("trial"), dict) else []
        parts += [f"{name} {content[name]}" for name in names if name in content]
    return escape(" · ".join(parts)) or "not described"
