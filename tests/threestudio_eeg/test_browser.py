"""The pages as a person meets them: opened, looked at, and used from the keyboard alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from threestudio_eeg.report import write_report

from .browser import CHROMIUM, Page, browser
from .test_report import green_object, inputs, is_green
from .test_representations import train

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
SIZES = {"wide": (1280, 1000, False), "phone": (390, 844, True)}
FOCUSED = """(focus => focus.getAttribute("aria-label") || (focus.labels || [])[0]?.textContent
  || focus.textContent)(document.activeElement).slice(0, 80)"""
OPTIONS = "document.querySelectorAll('[role=option]').length"
HIGHLIGHTED = "document.querySelector('[role=option][data-combobox-selected]')?.textContent"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
WITHIN = ("data:", "blob:", "about:")


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, **inputs(folder), truth=green_object())


@pytest.fixture(params=SIZES)
def page(request, tmp_path):
    width, height, phone = SIZES[request.param]
    with browser(tmp_path) as page:
        page.size(width, height, phone=phone)
        yield page


def wait(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"never: {what}"
        time.sleep(0.1)


def tab_to(page: Page, wanted: str, most: int = 40) -> None:
    """Press Tab until the focus is on something of this name."""
    seen: list[str] = []
    for _ in range(most):
        page.press("Tab")
        seen.append(page.value(FOCUSED))
        if wanted in seen[-1]:
            return
    raise AssertionError(f"the keyboard does not reach {wanted}, only {seen}")


def go_down_to(page: Page, wanted: str, most: int = 10) -> None:
    """Press the arrow until the option of this name is the one that Enter takes."""
    for _ in range(most):
        if page.value(HIGHLIGHTED) == wanted:
            return
        page.press("ArrowDown")
        time.sleep(0.1)
    raise AssertionError(f"the arrow does not reach {wanted}, only {page.value(HIGHLIGHTED)}")


def stage(page: Page) -> np.ndarray:
    """What the report's canvas shows, scrolled to."""
    page.value("document.getElementById('viewer').scrollIntoView({block: 'center'})")
    words = "document.getElementById('viewer').getBoundingClientRect()"
    left, top, right, bottom = (
        round(page.value(f"{words}.{side}")) for side in ("left", "top", "right", "bottom")
    )
    return page.picture()[max(top, 0) : bottom, max(left, 0) : right]


def test_report_shows_its_object_and_fits_the_window(report: Path, page: Page) -> None:
    page.open(report.as_uri())
    wait(lambda: bool(is_green(stage(page)).mean() > 0.08), "the object's green")
    assert page.value(OVERFLOW) <= 0
    assert page.value("document.getElementById('viewer').clientWidth") > 300
    assert page.errors == []
    assert [r for r in page.requests if not r.startswith(("file:", "data:"))] == []


def test_report_is_used_from_the_keyboard(report: Path, page: Page) -> None:
    page.open(report.as_uri())
    wait(lambda: bool(is_green(stage(page)).mean() > 0.08), "the object's green")
    page.value("scrollTo(0, 0)")
    tab_to(page, "Arrow keys turn it")
    before = stage(page)
    for _ in range(4):
        page.press("ArrowLeft")
    wait(lambda: (stage(page) != before).mean() > 0.02, "the object turned")
    tab_to(page, "Clay")
    page.press("Enter")
    wait(lambda: not is_green(stage(page)).any(), "the clay")
    assert page.value("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.errors == []


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return train("implicit-volume", tmp_path_factory.mktemp("run"), steps=1)


@pytest.fixture
def viewer(run: Path):
    pytest.importorskip("viser")
    from threestudio_eeg.viewer.server import Viewer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Viewer({"run": run}, port=port, small=32, large=64)
    yield made, f"http://127.0.0.1:{port}"
    made.close()


def middle(page: Page) -> np.ndarray:
    """The window around its centre, as numbers."""
    picture = page.picture().astype(int)
    height, width = picture.shape[:2]
    return picture[height // 2 - 60 : height // 2 + 60, width // 2 - 60 : width // 2 + 60]


def shows_an_object(page: Page) -> bool:
    """Whether the centre differs from the corner, which is background."""
    corner = page.picture()[-4:, :4].astype(int).mean((0, 1))
    return bool((np.abs(middle(page) - corner).max(-1) > 25).mean() > 0.3)


def test_view_shows_the_field_and_fits_the_window(viewer, page: Page) -> None:
    page.open(viewer[1])
    wait(lambda: shows_an_object(page), "the field in the window")
    assert page.value(OVERFLOW) <= 0
    assert page.errors == []
    assert [r for r in page.requests if not r.startswith((viewer[1], *WITHIN))] == []


def test_view_is_used_from_the_keyboard(viewer, page: Page) -> None:
    server, address = viewer
    page.open(address)
    wait(lambda: shows_an_object(page), "the field in the window")
    before = middle(page)
    tab_to(page, "Shows")
    page.press("ArrowDown")
    page.wait_for(OPTIONS)
    go_down_to(page, "depth")
    page.press("Enter")
    wait(lambda: server.kind.value == "depth", "another kind")
    wait(lambda: (np.abs(middle(page) - before) > 25).mean() > 0.1, "another picture")
    assert page.errors == []
