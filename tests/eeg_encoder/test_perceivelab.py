from __future__ import annotations

import numpy as np
import pytest
import torch

from eeg_encoder.errors import InputError
from eeg_encoder.recordings.perceivelab import (
    load_perceivelab,
    load_splits,
    picture_path,
    write_perceivelab,
    write_splits,
)

from .conftest import small_trials


def published(lengths=(500, 498, 491, 1527, 440), **changes):
    generator = torch.Generator().manual_seed(0)
    return {
        "dataset": [
            {
                "eeg": torch.randn(128, length, generator=generator),
                "image": i % 3,
                "label": i % 2,
                "subject": 1 + i % 2,
            }
            for i, length in enumerate(lengths)
        ],
        "labels": ["n02389026", "n03888257"],
        "images": ["n02389026_1", "n03888257_2", "n02389026_3"],
        **changes,
    }


def saved(path, content, **how):
    torch.save(content, path, **how)
    return path


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_reads_the_published_layout(tmp_path, new):
    content = published()
    path = saved(tmp_path / "eeg.pth", content, _use_new_zipfile_serialization=new)
    trials = load_perceivelab(path)
    assert trials.signals.shape == (3, 128, 440)
    assert trials.signals.dtype == np.float32
    np.testing.assert_array_equal(trials.signals[1], content["dataset"][1]["eeg"][:, 20:460])
    assert trials.total == 5
    assert trials.positions.tolist() == [0, 1, 2]
    assert trials.stimuli.tolist() == ["n02389026_1", "n03888257_2", "n02389026_3"]
    assert trials.blocks.tolist() == trials.labels.tolist()
    assert trials.sfreq == 1000.0


def test_split_positions_survive_a_subject_filter(tmp_path):
    path = saved(tmp_path / "eeg.pth", published(lengths=(500,) * 6))
    second = load_perceivelab(path, subjects=[2])
    assert second.positions.tolist() == [1, 3, 5]
    assert second.at(np.array([0, 1, 2, 5])).positions.tolist() == [1, 5]


def test_round_trip(tmp_path):
    trials = small_trials(channels=128)
    write_perceivelab(tmp_path / "eeg.pth", trials)
    again = load_perceivelab(tmp_path / "eeg.pth", window=(0, 450))
    np.testing.assert_array_equal(again.signals, trials.signals[:, :, :450])
    for name in ("labels", "stimuli", "subjects", "sessions", "blocks"):
        np.testing.assert_array_equal(getattr(again, name), getattr(trials, name))
    assert again.channels == trials.channels
    assert again.label_names == trials.label_names
    assert list(tmp_path.iterdir()) == [tmp_path / "eeg.pth"]


def spoil(content, key, value):
    content["dataset"][1][key] = value
    return content


def with_sample(value):
    content = published()
    content["dataset"][2]["eeg"][7, 100] = value
    return content


def with_flat_channel():
    content = published()
    content["dataset"][0]["eeg"][5] = 0.25
    return content


BAD = {
    "foreign": (lambda: {"weights": torch.zeros(2)}, "dataset: found nothing"),
    "list": (lambda: [1, 2], "found list, expected a dictionary"),
    "empty": (lambda: published(dataset=[]), "dataset: found an empty list"),
    "channels": (lambda: spoil(published(), "eeg", torch.zeros(64, 500)), r"dataset\[1\].eeg"),
    "length": (lambda: published(lengths=(300, 700)), "none of 2 trials"),
    "label": (lambda: spoil(published(), "label", 2), r"dataset\[1\].label: found 2, .* 0 to 1"),
    "image": (lambda: spoil(published(), "image", -1), r"dataset\[1\].image: found -1"),
    "nan": (lambda: with_sample(float("nan")), r"dataset\[2\].eeg\[7\]: found NaN"),
    "flat": (with_flat_channel, r"dataset\[0\].eeg\[5\]: found a flat channel"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_content_is_named(tmp_path, case):
    make, message = BAD[case]
    path = saved(tmp_path / "eeg.pth", make())
    with pytest.raises(InputError, match=message) as caught:
        load_perceivelab(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="found nothing"):
        load_perceivelab(tmp_path / "none.pth")
    whole = saved(tmp_path / "eeg.pth", published()).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("not a recording")
    for name in ("cut.pth", "text.pth"):
        with pytest.raises(InputError, match=name) as caught:
            load_perceivelab(tmp_path / name)
        assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickled_code_is_refused(tmp_path, capsys):
    path = saved(tmp_path / "evil.pth", {"dataset": [Payload()]})
    with pytest.raises(InputError):
        load_perceivelab(path)
    assert "executed" not in capsys.readouterr().out


def test_splits_round_trip(tmp_path):
    parts = {"train": [0, 3], "val": [1], "test": np.array([2])}
    write_splits(tmp_path / "splits.pth", parts)
    again = load_splits(tmp_path / "splits.pth", 4)
    assert {name: index.tolist() for name, index in again.items()} == {
        "train": [0, 3],
        "val": [1],
        "test": [2],
    }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [0], "val": [1], "test": [4]}, r"splits\[0\].test\[0\]: found 4, .* 0 to 3"),
        ({"train": [-1], "val": [1], "test": [2]}, r"train\[0\]: found -1"),
        ({"train": [0, 1], "val": [2], "test": [1]}, "trial 1, also in train"),
        ({"train": [0, 0], "val": [], "test": []}, "named twice"),
        ({"train": [0], "val": [1]}, r"splits\[0\].test: found nothing"),
    ],
)
def test_bad_splits_are_named(tmp_path, parts, message):
    path = saved(tmp_path / "splits.pth", {"splits": [parts]})
    with pytest.raises(InputError, match=message):
        load_splits(path, 4)


def test_no_such_split(tmp_path):
    write_splits(tmp_path / "splits.pth", {"train": [0], "val": [], "test": []})
    with pytest.raises(InputError, match="no split 3"):
        load_splits(tmp_path / "splits.pth", 4, split=3)


def test_picture_path(tmp_path):
    (tmp_path / "n02389026").mkdir()
    (tmp_path / "n02389026" / "n02389026_1.JPEG").touch()
    found = picture_path(tmp_path, "n02389026_1")
    assert found == tmp_path / "n02389026" / "n02389026_1.JPEG"
    with pytest.raises(InputError, match="no n02389026_2.JPEG"):
        picture_path(tmp_path, "n02389026_2")
