"""What the benchmarks of objects made from EEG alone share: trials, settings, means, pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import phantom_objects
from phantom_objects import Job, Settings
from pool import threads_each

from eeg_encoder.files import whole_file


def settings_from(
    options: argparse.Namespace,
    out: Path,
    device: str,
    *,
    steps: int | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Settings of objects by phantom/eeg.yaml."""
    return Settings(
        out=str(out),
        objects=str(options.objects),
        conditioning=str(options.conditioning),
        controls=(),
        pipeline=options.pipeline,
        judge=options.judge,
        eeg_config="phantom/eeg.yaml",
        text_config="phantom/text.yaml",
        overlays=(),
        steps=steps,
        overrides=tuple(overrides),
        device=device,
        size=options.size,
        threads=threads_each(options.workers, device),
    )


def trials_of(options: argparse.Namespace, seed: int) -> list[Job]:
    """The test trials wanted, after those that are left out."""
    wanted = argparse.Namespace(
        objects=options.objects,
        conditioning=options.conditioning,
        conditions=["eeg"],
        subject=options.subject,
        trials=options.trials,
        skip=options.skip,
        stimuli=None,
        seeds=[seed],
    )
    return phantom_objects.plan(wanted)


def summarise(entries: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """Mean and standard error of each figure over the objects that were made."""
    made = [entry for entry in entries if "error" not in entry]
    figures: dict[str, Any] = {"made": len(made), "failed": len(entries) - len(made)}
    for name in names:
        values = [float(e[name]) for e in made if e.get(name) is not None]
        figures[name] = phantom_objects.mean_and_error(values)
    return figures


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def add_line(out: Path, entry: Mapping[str, Any]) -> None:
    """Keep a line; its key is the object's."""
    key = f"{entry['condition']}-{entry['stimulus']}-{entry['seed']}"
    phantom_objects.add_result(out, {"key": key, **entry})


def save_contact(out: Path, groups: Sequence[Sequence[Job]], name: str) -> None:
    """One group of objects a row, a strip of four views of each; only rows that lack none."""
    from PIL import Image

    strips = [[out / "views" / f"{job.key}.png" for job in group] for group in groups]
    rows = [row for row in strips if all(path.is_file() for path in row)]
    if not rows:
        return
    pictures = [[Image.open(path) for path in row] for row in rows]
    width, height = pictures[0][0].size
    sheet = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            sheet.paste(picture, (j * width, i * height))
    with whole_file(out / name) as temporary:
        sheet.save(temporary, format="PNG")
