"""Rows of finished objects: read, checked against each other, compared, written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from eeg_encoder.errors import InputError
from threestudio_eeg.cli import app
from threestudio_eeg.comparison.command import CompareOptions, compare
from threestudio_eeg.comparison.comparing import compare_sources
from threestudio_eeg.comparison.rows import read_rows
from threestudio_eeg.comparison.tables import as_csv, markdown

ROWS = Path(__file__).parents[3] / "docs" / "figures" / "objects-40.jsonl"
SETTINGS = {"steps": 400, "pipeline": "phantom", "overlays": [], "conditioning": "a.safetensors"}


def row(condition, trial, seed=0, **figures):
    known = {"fscore": 0.5, "category_right": True, "asymmetric": False, "two_fronts": False}
    return {"condition": condition, "stimulus": trial, "seed": seed, **known, **figures}


def batch(folder, rows, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(entry) + "\n" for entry in rows)
    (folder / "results.jsonl").write_text(lines)
    (folder / "settings.json").write_text(json.dumps({**SETTINGS, **settings}))
    return folder


def two(folder, shift=0.1, seeds=(0,), **settings):
    rows = [
        row(condition, f"t{i}", seed, fscore=0.5 + 0.01 * i + seed + (condition == "text") * shift)
        for condition in ("eeg", "text")
        for i in range(6)
        for seed in seeds
    ]
    return batch(folder, rows, **settings)


def test_the_forty_objects_of_the_documentation():
    found = compare_sources([read_rows(ROWS)])
    assert found.conditions == ["text", "eeg", "shuffled"]
    assert found.reference == "eeg"
    assert found.estimates["category_right"]["eeg"].mean == pytest.approx(0.875)
    assert found.estimates["side_right"]["eeg"].n == 26
    pair = found.differences["fscore"]["text"]
    assert (pair.n, round(pair.mean, 3)) == (40, -0.054)
    assert found.differences["fscore"]["shuffled"].adjusted < 1e-4
    assert "not recorded" in found.notes[0]
    means = markdown(found).split("##")[0]
    assert ROWS.with_name("comparison-40.md").read_text(encoding="utf-8").startswith(means)
    with ROWS.with_name("comparison-40.csv").open(encoding="utf-8") as file:
        kept = list(csv.DictReader(file))
    now = list(csv.DictReader(io.StringIO(as_csv(found))))
    for name in ("mean", "low", "difference", "difference_high"):
        assert [float(r[name] or 0) for r in kept] == pytest.approx(
            [float(r[name] or 0) for r in now], abs=1e-6
        )


def test_seeds_are_averaged_before_trials_are_counted(tmp_path):
    found = compare_sources([read_rows(two(tmp_path / "a", seeds=(0, 1, 2)))])
    assert found.estimates["fscore"]["eeg"].n == 6
    assert found.values["fscore"]["eeg"]["t0"] == pytest.approx(0.5 + 1)
    assert found.counts["eeg"]["made"] == 18
    assert found.counts["eeg"]["seeds"] == [0, 1, 2]


def test_figures_without_meaning_do_not_count(tmp_path):
    rows = [row(c, f"t{i}", asymmetric=i < 2, two_fronts=True, chamfer=None if i else 0.5)
            for c in ("eeg", "text") for i in range(4)]  # fmt: skip
    found = compare_sources([read_rows(batch(tmp_path / "a", rows))])
    assert found.estimates["two_fronts"]["eeg"].n == 2
    assert found.estimates["chamfer"]["eeg"].n == 1


def test_a_later_row_replaces_an_earlier_one_and_failures_are_counted(tmp_path):
    rows = [row("eeg", "a", fscore=0.1), row("eeg", "a", fscore=0.9), row("text", "a")]
    rows.append({"condition": "text", "stimulus": "b", "seed": 0, "error": "the worker died"})
    found = compare_sources([read_rows(batch(tmp_path / "a", rows))])
    assert found.values["fscore"]["eeg"] == {"a": 0.9}
    assert found.counts["text"]["failed"] == 1
    assert "| failed | 1 | 0 |" in markdown(found)


def test_representations_are_named_where_there_are_several(tmp_path):
    grid = two(tmp_path / "grid", overlays=["representation/volume-grid.yaml"])
    found = compare_sources([read_rows(two(tmp_path / "hash")), read_rows(grid)])
    assert found.conditions == [
        "text, as configured",
        "text, volume-grid",
        "eeg, as configured",
        "eeg, volume-grid",
    ]
    assert found.reference == "eeg, as configured"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 300}, ("steps: found 300", "expected 400", "--allow steps")),
        ({"pipeline": "sd"}, ("pipeline: found sd", "expected phantom")),
    ],
)
def test_other_protocols_are_refused_by_name(tmp_path, settings, words):
    first = two(tmp_path / "a")
    second = batch(tmp_path / "b", [row("image", f"t{i}") for i in range(6)], **settings)
    with pytest.raises(InputError) as error:
        compare_sources([read_rows(first), read_rows(second)])
    for word in (*words, str(tmp_path / "a"), str(tmp_path / "b")):
        assert word in str(error.value)
    allowed = compare_sources([read_rows(first), read_rows(second)], allowed=list(settings))
    assert any("differs" in note for note in allowed.notes)


def test_other_seeds_are_refused_by_name(tmp_path):
    rows = [row("eeg", "a", 0), row("eeg", "a", 1), row("text", "a", 0)]
    source = read_rows(batch(tmp_path / "a", rows))
    with pytest.raises(InputError, match=r"seeds: found \[0, 1\] in eeg for a, expected \[0\]"):
        compare_sources([source])
    assert compare_sources([source], allowed=["seeds"]).values["fscore"]["eeg"] == {"a": 0.5}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"condition": "eeg"}\n', "stimulus"),
        ('{"condition": "eeg", "stimulus": "a", "se', "line 1"),
        ("[1]\n", "JSON object"),
        ("", "objects: found none"),
    ],
)
def test_bad_rows_are_named(tmp_path, content, words):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(InputError, match=words):
        read_rows(tmp_path / "rows.jsonl")


def test_one_condition_or_no_shared_trial_cannot_be_compared(tmp_path):
    with pytest.raises(InputError, match="only eeg"):
        compare_sources([read_rows(batch(tmp_path / "a", [row("eeg", "a")]))])
    apart = batch(tmp_path / "b", [row("eeg", "a"), row("text", "b")])
    with pytest.raises(InputError, match="trials"):
        compare_sources([read_rows(apart)])
    with pytest.raises(InputError, match="twice"):
        compare_sources([read_rows(two(tmp_path / "c")), read_rows(tmp_path / "c")])


def test_batches_that_differ_in_an_allowed_setting_are_named(tmp_path):
    off = read_rows(two(tmp_path / "b", shift=0.3, overrides=["views=off"]), "off")
    sources = [read_rows(two(tmp_path / "a", overrides=[]), "on"), off]
    with pytest.raises(InputError, match="overrides: found"):
        compare_sources(sources)
    found = compare_sources(sources, reference="text, off", allowed=["overrides"])
    assert found.conditions == ["text, off", "text, on", "eeg, off", "eeg, on"]
    assert found.differences["fscore"]["text, on"].mean == pytest.approx(0.2)


def test_tables_and_sheet_say_the_same(tmp_path):
    folder = two(tmp_path / "a")
    (folder / "views").mkdir()
    strip = np.concatenate([np.full((16, 16, 3), 60 * i, np.uint8) for i in range(4)], axis=1)
    Image.fromarray(strip).save(folder / "views" / "eeg-t0-0.png")
    result = CliRunner().invoke(app, ["compare", str(folder), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    written = {kind: tmp_path / "out" / f"comparison.{kind}" for kind in ("md", "csv", "json")}
    content = json.loads(written["json"].read_text())
    assert content["differences"]["fscore"]["text"]["mean"] == pytest.approx(-0.1)
    with written["csv"].open() as file:
        lines = {(r["figure"], r["condition"]): r for r in csv.DictReader(file)}
    assert float(lines["fscore", "text"]["difference"]) == pytest.approx(-0.1)
    assert lines["fscore", "eeg"]["difference"] == ""
    assert "| F-score ↑ | text | -0.100 [-0.100, -0.100] |" in written["md"].read_text()
    with Image.open(tmp_path / "out" / "comparison.png") as sheet:
        assert sheet.width > 6 * 128
        assert sheet.getpixel((64, 128 + 40 + 64)) == (0, 0, 0)


def test_the_command_line_names_what_is_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "configs").mkdir(parents=True)
    for source, words in (
        ("nowhere", "nowhere: run: found nothing"),
        ("empty", "no trial folder"),
        ("half", "configs/parsed.yaml"),
    ):
        arguments = ["compare", str(tmp_path / source), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_reference_is_refused(tmp_path):
    options = CompareOptions([str(two(tmp_path / "a"))], tmp_path / "out", reference="image")
    with pytest.raises(InputError, match="reference: found image, expected text or eeg"):
        compare(options)
