"""Conditioning files of what EEG is compared with, and the benchmark that makes them all."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eeg_encoder.conditioning import Trial, load_conditioning, save_conditioning
from eeg_encoder.errors import InputError
from eeg_encoder.image_space import embed_pictures, text_tokens
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg.cli import app
from threestudio_eeg.comparison.controls import KINDS, control_conditioning, derangement
from threestudio_eeg.pipeline import load_pipeline

LABELS = ("mug", "mug", "chair", "chair")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("controls") / "pipeline")


@pytest.fixture(scope="module")
def pictures(pipeline):
    """Four pictures a class; the file has seen two of each."""
    random = np.random.default_rng(0)
    for wnid in ("n1", "n2"):
        (pipeline.parent / "pictures" / wnid).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            path = pipeline.parent / "pictures" / wnid / f"{wnid}_{number}.png"
            Image.fromarray(pixels).save(path)
    return pipeline.parent / "pictures"


@pytest.fixture(scope="module")
def eeg(pipeline):
    file = tiny_conditioning(pipeline.parent / "eeg.safetensors", pipeline, n=4)
    trials = [
        Trial(f"s1-n{1 + i // 2}_{i % 2}", 1, f"n{1 + i // 2}_{i % 2}", label)
        for i, label in enumerate(LABELS)
    ]
    made = replace(load_conditioning(file), trials=trials)
    save_conditioning(file, made)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_trials_stay_and_tokens_change(eeg, pipeline, pictures, kind):
    made = control_conditioning(eeg, kind, pipeline=pipeline, pictures=pictures)
    assert made.trials == eeg.trials
    assert made.tokens.shape == eeg.tokens.shape
    assert not torch.equal(made.tokens, eeg.tokens)
    assert torch.equal(made.null_tokens, eeg.null_tokens)
    expected = {"image": "image", "shuffled": "shuffled"}.get(kind, "class")
    assert made.protocol["condition"] == expected
    assert made.protocol["control"] == kind
    assert "condition" not in eeg.protocol


def test_image_is_the_picture_seen(eeg, pipeline, pictures):
    made = control_conditioning(eeg, "image", pipeline=pipeline, pictures=pictures)
    seen = embed_pictures(pipeline, pictures, [t.stimulus for t in eeg.trials])
    torch.testing.assert_close(made.pooled, seen)
    projection = load_pipeline(pipeline, device="cpu").image_projection
    torch.testing.assert_close(made.tokens, projection(seen))


def test_class_mean_is_of_other_pictures_of_the_class(eeg, pipeline, pictures):
    made = control_conditioning(eeg, "class-mean", pipeline=pipeline, pictures=pictures)
    others = embed_pictures(pipeline, pictures, ["n1_2", "n1_3"]).mean(0)
    torch.testing.assert_close(made.pooled[0], torch.nn.functional.normalize(others, dim=0))
    assert torch.equal(made.tokens[0], made.tokens[1])
    assert not torch.equal(made.tokens[0], made.tokens[2])


def test_label_is_the_word(eeg, pipeline):
    made = control_conditioning(eeg, "label", pipeline=pipeline)
    networks = load_pipeline(pipeline, device="cpu")
    words = text_tokens(networks.tokenizer, networks.text_encoder, ["a mug", "a chair"])
    torch.testing.assert_close(made.tokens[[0, 2]], words)


def test_shuffled_is_the_eeg_of_another_label(eeg, pipeline):
    made = control_conditioning(eeg, "shuffled", pipeline=pipeline)
    rows = [int((eeg.tokens == tokens).all((1, 2)).nonzero()) for tokens in made.tokens]
    assert sorted(rows) == [0, 1, 2, 3]
    assert all(LABELS[row] != LABELS[place] for place, row in enumerate(rows))


@pytest.mark.parametrize("labels", [["a"] * 5, ["a", "a", "a", "b"], list("aabbccdd")])
def test_a_derangement_moves_every_row(labels):
    rows = derangement(labels, seed=3)
    assert sorted(rows) == list(range(len(labels)))
    assert all(row != place for place, row in enumerate(rows))


def test_what_is_missing_is_named(eeg, pipeline, pictures, tmp_path):
    with pytest.raises(InputError, match="kind: found gaussian"):
        control_conditioning(eeg, "gaussian", pipeline=pipeline)
    with pytest.raises(InputError, match="--pictures"):
        control_conditioning(eeg, "image", pipeline=pipeline)
    with pytest.raises(InputError, match="n1_0"):
        control_conditioning(eeg, "image", pipeline=pipeline, pictures=tmp_path)
    with pytest.raises(InputError, match="pictures: found none"):
        control_conditioning(eeg, "class-mean", pipeline=pipeline, pictures=tmp_path)
    other = replace(eeg, base_model="sd:0")
    with pytest.raises(InputError, match="base model"):
        control_conditioning(other, "label", pipeline=pipeline)


def test_the_command_writes_a_conditioning_file(eeg, pipeline, pictures, tmp_path):
    arguments = ["control", pipeline.parent / "eeg.safetensors", "--kind", "image"]
    arguments += ["--pictures", pictures, "--pipeline", pipeline]
    arguments += ["--out", tmp_path / "image.safetensors", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    assert load_conditioning(tmp_path / "image.safetensors").protocol["control"] == "image"


def test_the_objects_benchmark_takes_the_control_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    benchmark = importlib.import_module("phantom_objects")
    file = tmp_path / "image.safetensors"
    file.write_bytes(b"")
    words = ["--objects", "o.json", "--out", "out", "--conditions", "eeg", "image"]
    missing = benchmark._parser().parse_args(words)
    with pytest.raises(InputError, match="none for image, expected --control image=FILE"):
        benchmark.controls_of(missing)
    given = benchmark._parser().parse_args([*words, "--control", f"image={file}"])
    assert benchmark.controls_of(given) == (("image", str(file)),)
    wrong = benchmark._parser().parse_args([*words, "--control", f"image={file}x"])
    with pytest.raises(InputError, match="and a conditioning file"):
        benchmark.controls_of(wrong)
    sys.modules.pop("phantom_objects", None)
