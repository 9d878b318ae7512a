from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eeg_encoder.errors import InputError
from threestudio_eeg.report.index import write_index
from threestudio_eeg.report.looked import looked
from threestudio_eeg.report.material import figures_beside, trial_folder
from threestudio_eeg.report.pictures import beside

CHANNELS = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2"]
VOID = {"meta", "link", "img", "br", "input", "col", "hr"}


class Balanced(HTMLParser):
    """Fails on an end tag that closes nothing; ``open`` is what was left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        pass

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def balanced(page: str) -> None:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []


def trial(folder: Path, *, report: bool = False) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "parsed.yaml").write_text("name: x\n")
    (folder / "provenance.json").write_text('{"host": "builtin", "seed": 7}')
    (folder / "conditioning.json").write_text('{"trial": {"label": "a <mug>"}}')
    if report:
        (folder / "report.html").write_text("<!doctype html>")
    return folder


def test_index_links_the_reports_and_says_how_to_make_the_others(tmp_path) -> None:
    trial(tmp_path / "eeg" / "a&b #1", report=True)
    other = trial(tmp_path / "eeg" / "two")
    (other / "save").mkdir()
    Image.new("RGB", (32, 8), (200, 0, 0)).save(other / "save" / "it5-0.png")
    page = write_index(tmp_path).read_text(encoding="utf-8")
    balanced(page)
    assert 'href="eeg/a%26b%20%231/report.html"' in page
    assert "eeg/a&amp;b #1" in page
    assert f"threestudio-eeg report {other}" in page
    assert "2 runs, 1 with a report." in page
    assert "a &lt;mug&gt; · host builtin · seed 7" in page
    assert page.count("data:image/png;base64,") == 1
    assert not re.search(r"https?:|<script", page)


def test_index_links_the_report_of_the_demo_two_folders_up(tmp_path) -> None:
    trial(tmp_path / "demo" / "run" / "s1")
    (tmp_path / "demo" / "report.html").write_text("<!doctype html>")
    assert 'href="demo/report.html"' in write_index(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize("make", [False, True])
def test_index_of_a_folder_without_runs_is_refused(tmp_path, make: bool) -> None:
    folder = tmp_path / "runs"
    if make:
        folder.mkdir()
    with pytest.raises(InputError, match="no trial folder" if make else "nothing"):
        write_index(folder)


def test_trial_folder_is_found_and_ambiguous_or_half_written_ones_are_named(tmp_path) -> None:
    one = trial(tmp_path / "run" / "one")
    assert trial_folder(one) == one
    assert trial_folder(tmp_path) == one
    trial(tmp_path / "run" / "two")
    with pytest.raises(InputError, match="2 trial folders"):
        trial_folder(tmp_path)
    (tmp_path / "half" / "configs").mkdir(parents=True)
    with pytest.raises(InputError, match=r"configs/parsed\.yaml"):
        trial_folder(tmp_path / "half")
    with pytest.raises(InputError, match="trial folder"):
        trial_folder(tmp_path / "absent")


def test_figures_of_another_trial_are_not_taken(tmp_path) -> None:
    own = trial(tmp_path / "run" / "one")
    (tmp_path / "metrics.json").write_text('{"fscore": 0.5, "seen": {"trial": "two"}}')
    assert figures_beside(own) == {}
    (tmp_path / "metrics.json").write_text('{"fscore": 0.5, "seen": {"trial": "one"}}')
    assert figures_beside(own)["fscore"] == 0.5
    (tmp_path / "metrics.json").write_text("[1")
    with pytest.raises(InputError, match="JSON"):
        figures_beside(own)


def test_object_and_baseline_stand_beside_the_stimulus() -> None:
    views = [np.full((4, 4, 3), value / 8) for value in range(8)]
    stimulus = np.ones((4, 4, 3))
    body = beside(
        stimulus, [("This object", views), ("Text: <mug>", views[:4]), ("odd", views[:3])]
    )
    balanced(body)
    assert body.count("<img ") == 1 + 4 + 4
    assert "Text: &lt;mug&gt;" in body
    assert "<h3>odd</h3>" not in body
    assert beside(None, [("This object", views)]) == ""


def test_saliency_names_the_strongest_channel_and_refuses_what_are_no_shares() -> None:
    shares = np.full((len(CHANNELS), 50), 0.1 / 500)
    shares[8, 20:25] += 0.18
    given = {"shares": shares, "channels": CHANNELS, "sfreq": 100.0, "tmin": 0.1}
    body = looked(given)
    balanced(body)
    assert "Strongest channels: O1," in body
    assert "590 ms after onset" in body
    assert "Saliency over the head" in body
    with pytest.raises(InputError, match="negative"):
        looked(given | {"shares": -shares})
    with pytest.raises(InputError, match=r"\(10, samples\)"):
        looked(given | {"shares": shares[:3]})
