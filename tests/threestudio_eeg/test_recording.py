"""A recording of the phantom: drawn, rendered, simulated, written, and read as any other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from eeg_encoder.image_space import embed_pictures
from eeg_encoder.recordings.perceivelab import load_perceivelab, load_splits, picture_path
from eeg_encoder.recordings.simulation import SimulationConfig, StimulusCode, Subject
from eeg_encoder.recordings.splits import check_split
from tests.tiny import tiny_pipeline
from threestudio_eeg.phantom import recording as room
from threestudio_eeg.phantom.categories import CATEGORIES
from threestudio_eeg.phantom.files import write_meshes, write_pictures
from threestudio_eeg.phantom.objects import HELD_OUT_PAIRS
from threestudio_eeg.phantom.recording import (
    BASIS,
    draw_instances,
    fit_stimulus_code,
    load_objects,
    make_recording,
    object_of,
    stimulus_camera,
    stimulus_code,
)

from .phantom_world import random_code

EEG = SimulationConfig(repetitions=2, held_out_repetitions=3, subjects=2, sessions=1)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tiny_pipeline(tmp_path_factory.mktemp("recording") / "pipeline")
    random_code().save(folder / BASIS)
    return folder


def record(folder, pipeline, **options):
    options = {
        "per_category": {"train": 1, "val": 1, "test": 2},
        "simulation": EEG,
        "categories": ["chair", "mug"],
        **options,
    }
    return make_recording(folder, pipeline=pipeline, **options)


@pytest.fixture(scope="module")
def recording(tmp_path_factory, pipeline):
    return record(tmp_path_factory.mktemp("recording") / "whole", pipeline)


def test_it_is_read_by_the_loaders_of_real_recordings(recording):
    trials = load_perceivelab(recording.trials)
    splits = load_splits(recording.splits, trials.total)
    # 2 categories: 2 x 2 stimuli twice, 4 test stimuli three times, to 2 subjects
    assert {part: len(rows) for part, rows in splits.items()} == {"train": 8, "val": 8, "test": 24}
    assert not check_split(trials, splits)["within_block"]
    assert trials.sfreq == 1000
    assert trials.signals.shape[1] == 128
    assert len(trials.label_names) == len(CATEGORIES)
    objects = load_objects(recording.objects)
    for stimulus, label in zip(trials.stimuli, trials.labels, strict=True):
        assert CATEGORIES[label] == objects[str(stimulus)].category
        assert picture_path(recording.pictures, str(stimulus)).is_file()
    for part, rows in splits.items():
        assert {objects[str(s)].split for s in trials.at(rows).stimuli} == {part}


def test_the_truth_is_kept(recording):
    wanted = draw_instances({"train": 1, "val": 1, "test": 2}, 0, ["mug", "chair"])
    assert recording.instances == wanted
    objects = load_objects(recording.objects)
    assert list(objects.values()) == wanted
    assert object_of(recording.objects, wanted[0].stimulus) == wanted[0]
    content = json.loads(recording.objects.read_text())["objects"][wanted[0].stimulus]
    camera = stimulus_camera(wanted[0], 0)
    assert content["camera"]["azimuth"] == pytest.approx(float(camera.azimuth))
    assert content["caption"] == wanted[0].caption
    record = json.loads(recording.simulation.read_text())
    assert record["simulated"]
    assert record["snr_db"] == EEG.snr_db


def test_pictures_show_the_object_on_light_gray(recording):
    from PIL import Image

    with Image.open(picture_path(recording.pictures, recording.instances[0].stimulus)) as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (128, 128, 3)
    assert np.abs(pixels[:6] - round(0.85 * 255)).max() < 8
    assert np.abs(pixels[50:80, 50:80] - round(0.85 * 255)).max() > 60


def test_embeddings_are_those_of_the_pictures(recording, pipeline):
    names = [instance.stimulus for instance in recording.instances]
    torch.testing.assert_close(
        recording.embeddings, embed_pictures(pipeline, recording.pictures, names)
    )


def test_a_stimulus_does_not_depend_on_what_else_is_shown(recording, pipeline, tmp_path):
    part = record(tmp_path, pipeline, per_category={"test": 1})
    code = stimulus_code(pipeline)
    for instance, embedding in zip(part.instances, part.embeddings, strict=True):
        row = recording.instances.index(instance)
        stimulus = instance.stimulus
        one, other = (picture_path(r.pictures, stimulus) for r in (part, recording))
        assert one.read_bytes() == other.read_bytes()
        torch.testing.assert_close(embedding, recording.embeddings[row])
    responses = [Subject(EEG, code, 1).response(code(r.embeddings)) for r in (part, recording)]
    rows = [recording.instances.index(instance) for instance in part.instances]
    torch.testing.assert_close(responses[0], responses[1][rows])


def test_a_recording_is_a_function_of_its_seeds(recording, pipeline, tmp_path):
    again = load_perceivelab(record(tmp_path / "again", pipeline).trials)
    other = load_perceivelab(record(tmp_path / "other", pipeline, seed=1).trials)
    before = load_perceivelab(recording.trials)
    assert np.array_equal(before.signals, again.signals)
    assert np.array_equal(before.stimuli, again.stimuli)
    assert not np.array_equal(before.signals, other.signals)


def test_more_objects_extend_fewer():
    few, many = (draw_instances({"test": n}, 0) for n in (2, 5))
    assert set(few) < set(many)
    assert len(few) == 2 * len(CATEGORIES)
    train = draw_instances({"train": 5}, 0)
    assert not {i.parameters for i in train} & {i.parameters for i in many}


def test_held_out_pairs_are_test_objects_of_their_own():
    plain = draw_instances({"train": 20, "test": 20}, 0)
    assert not {(i.category, i.colour) for i in plain} & HELD_OUT_PAIRS
    extra = draw_instances({"test": 1}, 0, held_out_pairs=True)[len(CATEGORIES) :]
    assert {(i.category, i.colour) for i in extra} == HELD_OUT_PAIRS
    assert {i.split for i in extra} == {"test"}
    assert not {i.stimulus for i in extra} & {i.stimulus for i in plain}


def test_the_stimulus_code_is_fitted_once_and_kept(pipeline, tmp_path, monkeypatch):
    fitted = fit_stimulus_code(pipeline, per_category=1)
    assert bool(fitted.basis.isfinite().all())
    kept = stimulus_code(pipeline)
    assert torch.equal(kept.basis, random_code().basis)
    bare = tiny_pipeline(tmp_path / "pipeline")
    monkeypatch.setattr(room, "fit_stimulus_code", lambda *_, **__: fitted)
    assert stimulus_code(bare) is fitted
    file = room.write_stimulus_code(bare)
    assert torch.equal(StimulusCode.load(file).basis, fitted.basis)
    assert stimulus_code(bare) is not fitted


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"categories": ["mugg"]}, "category: found mugg"),
        ({"per_category": {"tests": 1}}, "split: found tests"),
        ({"per_category": {"test": 101}}, "found 101, expected 0 to 100"),
        ({"per_category": {"test": -1}}, "found -1"),
        ({"per_category": {"test": 0}}, "objects: found none"),
    ],
)
def test_bad_wishes_are_named(pipeline, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        record(tmp_path / "out", pipeline, **options)
    assert not (tmp_path / "out" / "recording.pth").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "file: found"),
        ("[]", "format"),
        ('{"format": "phantom objects"}', "objects: found KeyError"),
        ('{"format": "phantom objects", "objects": {"x": {"category": "mug"}}}', "KeyError"),
        (
            '{"format": "phantom objects", "objects": {"x": {"category": "gnu", "colour": "red", '
            '"parameters": [0, 0, 0, 0], "split": "test", "number": 0}}}',
            "unknown: a red gnu",
        ),
    ],
)
def test_bad_object_files_are_named(tmp_path, text, words):
    file = tmp_path / "objects.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_objects(file)
    assert str(file) in str(caught.value)


def test_an_unknown_stimulus_is_named(recording):
    with pytest.raises(InputError, match="stimulus: found nobody"):
        object_of(recording.objects, "nobody")


def test_meshes_as_files(tmp_path):
    from threestudio_eeg.evaluation.shape import load_mesh

    (glb,) = write_meshes(tmp_path, "test", 1, categories=["mug"], fmt="glb", resolution=32)
    (ply,) = write_meshes(tmp_path, "test", 1, categories=["mug"], fmt="ply", resolution=32)
    one, other = load_mesh(glb), load_mesh(ply)
    np.testing.assert_allclose(one.bounds, other.bounds, atol=1e-4)
    assert other.is_watertight
    assert load_objects(tmp_path / "objects.json")[ply.stem].category == "mug"
    with pytest.raises(InputError, match="fmt: found stl"):
        write_meshes(tmp_path, "test", 1, fmt="stl")


def test_pictures_as_files_with_captions(tmp_path):
    total = write_pictures(tmp_path, "train", 1, views=3, size=24, categories=["mug", "bed"])
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert total == len(lines) == 6
    assert len(list(tmp_path.glob("*.png"))) == 6
    for line in lines:
        assert (tmp_path / line["file_name"]).is_file()
        assert line["text"].startswith(("a", "an"))
        assert line["text"].endswith("view")
        assert line["category"] in line["text"]
        assert -10 <= line["elevation"] <= 45
