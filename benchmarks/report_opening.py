"""Size of a report, and how long a browser takes until its object can be seen.

Opens the page from disk in headless Chromium, whose graphics are computed on the CPU, and takes
pictures until the part with the object differs from the same part without it. Every opening is in
a browser of its own with an empty profile; the time runs from the request for the page to the
first picture with the object, the taking of the picture included.

    python -m benchmarks.report_opening outputs/demo/report.html --times 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.threestudio_eeg.browser import CHROMIUM, Page, browser  # noqa: E402

SIZES = {"1280": (1280, 1000, False), "390": (390, 844, True)}
LATEST = 20.0
DIFFERENT, SHARE = 25, 0.02
SAME, CORNER = 6, 8
"""Corners of the frame are as without the object once the page is laid out."""
GOAL_MB, GOAL_S = 15, 3
FRAME = "document.getElementById('viewer').getBoundingClientRect()"


def main() -> None:
    """Measure every page named and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="+", type=Path, help="report.html of runs")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("error: no chromium on PATH")
    rows = [measure(page, options.times) for page in options.pages]
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def measure(page: Path, times: int) -> dict[str, Any]:
    """Size and opening times of a page at both widths."""
    row: dict[str, Any] = {"page": str(page), "megabytes": page.stat().st_size / 1e6}
    row["goals"] = {"megabytes": GOAL_MB, "seconds": GOAL_S}
    for name, size in SIZES.items():
        seconds = [opening(page, *size) for _ in range(times)]
        row[f"seconds_{name}"] = seconds
        middle, worst = statistics.median(seconds), max(seconds)
        print(
            f"{page}: {row['megabytes']:.2f} MB, at {name} px the object is there after "
            f"{1000 * middle:.0f} ms (median of {times}, latest {1000 * worst:.0f} ms)",
            flush=True,
        )
    return row


def opening(file: Path, width: int, height: int, phone: bool) -> float:
    """Seconds from asking for the page until the object shows."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        browser(Path(folder)) as page,
    ):
        page.size(width, height, phone=phone)
        started = time.monotonic()
        page.send("Page.navigate", url=file.resolve().as_uri())
        taken: list[tuple[float, np.ndarray]] = []
        while time.monotonic() - started < LATEST:
            shot = _picture(page)
            if shot is None:
                continue
            taken.append((time.monotonic() - started, shot))
            if len(taken) > 2 and (seen := _first(page, taken)) is not None:
                return seen
    raise RuntimeError(f"{file}: no object within {LATEST:g} s")


def _picture(page: Page) -> np.ndarray | None:
    try:
        return page.picture()
    except RuntimeError:  # between two pages there is none
        return None


def _first(page: Page, taken: list[tuple[float, np.ndarray]]) -> float | None:
    """When the first picture with the object was taken; by hiding it for a moment."""
    if not page.value("document.readyState == 'complete' && !!document.getElementById('viewer')"):
        return None
    sides = ("left", "top", "right", "bottom")
    left, top, right, bottom = (max(0, round(page.value(f"{FRAME}.{s}"))) for s in sides)
    page.value("document.getElementById('viewer').style.visibility = 'hidden'")
    without = page.picture()[top:bottom, left:right].astype(int)
    page.value("document.getElementById('viewer').style.visibility = ''")
    for seconds, shot in taken:
        change = np.abs(shot[top:bottom, left:right].astype(int) - without).max(-1)
        laid_out = max(change[:CORNER, :CORNER].max(), change[-CORNER:, -CORNER:].max()) < SAME
        if laid_out and (change > DIFFERENT).mean() > SHARE:
            return seconds
    return None


if __name__ == "__main__":
    main()
