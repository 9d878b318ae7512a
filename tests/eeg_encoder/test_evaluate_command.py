"""``eeg-encoder evaluate``: any recording, protocol or split file, controls, tables and plots."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eeg_encoder import models
from eeg_encoder.cli import app
from eeg_encoder.figures import Question, answer
from eeg_encoder.preprocessing import Preprocessing
from eeg_encoder.pretrained import Pretrained, save_pretrained
from eeg_encoder.protocols import CONTROLS, find_protocol
from eeg_encoder.recordings.arrays import write_npz

from .conftest import small_trials

P = 12


def pictures_of(trials) -> dict[str, np.ndarray]:
    """The embeddings that ``small_trials`` was simulated from, by picture."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, P))
    labels = np.repeat(np.arange(3), 6)
    embeddings = centres[labels] + 0.5 * generator.normal(size=(18, P))
    names = [f"{trials.label_names[label]}_{i}" for i, label in enumerate(labels)]
    return dict(zip(names, embeddings.astype(np.float32), strict=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A recording of two people in ``.npz``, its embeddings, a split, encoders of two seeds."""
    folder = tmp_path_factory.mktemp("evaluate")
    knobs = {"snr_db": 15.0, "duration": 0.5, "sfreq": 250.0, "evoked_uv": 1.0, "jitter": 0.0}
    trials = small_trials(
        subjects=2, repetitions=4, subject_topography=0.0, subject_latency=0.0, **knobs
    )
    write_npz(folder / "eeg.npz", trials)
    pictures = pictures_of(trials)
    np.savez(folder / "clip.npz", ids=list(pictures), embeddings=np.stack(list(pictures.values())))
    split = next(find_protocol("k-fold-by-stimulus", k=3).splits(trials))
    split.save(folder / "split.json")
    train = trials.at(split.train)
    pre = Preprocessing(sfreq=50.0, whiten=False).fit(train)
    signals = torch.from_numpy(pre(train))
    target = torch.from_numpy(np.stack([pictures[str(s)] for s in train.stimuli]))
    for seed in (0, 1):
        torch.manual_seed(seed)
        settings = {"channels": 16, "samples": 25, "embedding": P, "hidden": 32, "dropout": 0.5}
        encoder = models.build("eeg_project", **settings)
        adam = torch.optim.Adam(encoder.parameters(), 3e-3)
        for _ in range(60):
            loss = ((encoder(signals) - target) ** 2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        config = {
            "model": {"name": "eeg_project", "settings": settings},
            "base_model": "none",
            "training": {"seed": seed},
            "protocol": {"name": split.name},
        }
        save_pretrained(folder / f"seed-{seed}", Pretrained(encoder.eval(), None, pre, config))
    return folder


def run(files, *arguments):
    words = ("evaluate", files / "eeg.npz", "--encoder", files / "seed-0", "--device", "cpu")
    return CliRunner().invoke(app, [str(word) for word in (*words, *arguments)])


def question(files, **changes) -> Question:
    asked = {"splits": files / "split.json", "embeddings": files / "clip.npz", **changes}
    return Question(files / "eeg.npz", **asked)


def test_a_table_over_seeds_with_its_files(files, tmp_path):
    result = run(
        files, "--encoder", files / "seed-1", "--baseline", files / "seed-1",
        "--splits", files / "split.json", "--embeddings", files / "clip.npz",
        "--table", tmp_path / "table", "--out", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [run["subjects"][0]["seed"] for run in found["runs"]] == [0, 1]
    assert [row["subject"] for row in found["table"]["rows"]] == [1, 2, "all"]
    assert found["table"]["rows"][0]["seeds"] == 2
    assert {test["figure"] for test in found["table"]["sign_test"]} == {"top1", "category_top1"}
    with open(tmp_path / "table.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    made_by = json.loads((tmp_path / "table.json").read_text())["provenance"]
    assert made_by["question"]["splits"].endswith("split.json")
    assert made_by["seeds"] == [0, 1]
    assert made_by["protocol"]["gallery"] == "embeddings of clip.npz"


def test_the_encoder_decodes_and_its_controls_do_not(files):
    plain = answer(question(files), files / "seed-0", device="cpu")
    assert plain["averaged"]["eeg"]["category_top1"] > 0.8
    assert plain["protocol"]["split"] == "k-fold-by-stimulus/fold-0"
    assert plain["protocol"]["same_split_as_training"] is True
    for name in ("drift", "gaussian"):
        control = answer(question(files, control=name), files / "seed-0", device="cpu")
        figures = control["single"]["eeg"]
        assert figures["category_top1"] < plain["single"]["eeg"]["category_top1"] - 0.2, name


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_every_control_is_one_flag(files, tmp_path, name):
    result = run(
        files, "--splits", files / "split.json", "--embeddings", files / "clip.npz",
        "--control", name, "--out", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    control = json.loads((tmp_path / "figures.json").read_text())["protocol"]["control"]
    assert control["name"] == name
    assert control["tells"]


def test_a_test_on_another_fold_says_so(files):
    other = question(files, splits=None, protocol="k-fold-by-stimulus", parameters={"k": 3}, fold=1)
    found = answer(other, files / "seed-0", device="cpu")["protocol"]
    assert found["same_split_as_training"] is False
    assert found["trained_on"] == {"name": "k-fold-by-stimulus/fold-0"}


def test_a_protocol_instead_of_a_file(files, tmp_path):
    result = run(
        files, "--protocol", "k-fold-by-stimulus", "-p", "k=3", "--fold", 0,
        "--embeddings", files / "clip.npz", "--plots", tmp_path / "plots",
        "--out", tmp_path / "figures.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    by_protocol = json.loads((tmp_path / "figures.json").read_text())
    by_file = answer(question(files), files / "seed-0", device="cpu")
    assert by_protocol["averaged"]["eeg"] == by_file["averaged"]["eeg"]
    drawn = {file.name for file in (tmp_path / "plots").iterdir()}
    assert drawn == {"over_time.png", "saliency.png", "similarity.png"}


def without_stimuli(files, tmp_path):
    from dataclasses import replace

    from eeg_encoder.recordings.arrays import load_npz

    trials = load_npz(files / "eeg.npz")
    blind = replace(trials, stimuli=np.full(len(trials), ""))
    write_npz(tmp_path / "blind.npz", blind)
    return tmp_path / "blind.npz"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "neither"),
        (("--splits", "split.json", "--protocol", "within-subject"), "both"),
        (("--protocol", "leave-nothing-out"), "leave-nothing-out"),
        (("--protocol", "k-fold-by-stimulus", "-p", "k=3", "--fold", "9"), "fold: found 9"),
        (("--splits", "split.json", "--control", "magic"), "magic"),
        (("--splits", "split.json", "--option", "colour=red"), "colour"),
        (("--splits", "none.json"), "none.json"),
        (("--splits", "split.json", "--embeddings", "short.npz"), "gallery"),
        (("--splits", "split.json", "--embeddings", "bad.npz"), "bad.npz"),
        (("--splits", "split.json", "--embeddings", "nan.npz"), "not finite"),
    ],
)
def test_bad_questions_are_one_line(files, arguments, message):
    np.savez(files / "short.npz", ids=["a"], embeddings=np.ones((1, P), np.float32))
    np.savez(files / "nan.npz", ids=["a"], embeddings=np.full((1, P), np.nan))
    (files / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    words = [files / w if str(w).endswith((".json", ".npz")) else w for w in arguments]
    if "--embeddings" not in words:
        words += ["--embeddings", files / "clip.npz"]
    result = run(files, *words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert message in result.stderr


def test_pictures_must_be_known(files, tmp_path):
    blind = without_stimuli(files, tmp_path)
    words = ["evaluate", blind, "--encoder", files / "seed-0", "--splits", files / "split.json"]
    words += ["--embeddings", files / "clip.npz", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2
    assert "which picture was shown" in result.stderr
