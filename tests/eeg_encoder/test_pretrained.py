"""An encoder's folder: what comes back from it, with and without a memory of pictures."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from eeg_encoder import models
from eeg_encoder.errors import InputError
from eeg_encoder.models.memory import PictureMemory
from eeg_encoder.preprocessing import Preprocessing
from eeg_encoder.pretrained import Pretrained, file_hash, from_pretrained, save_pretrained

from .conftest import small_trials

P = 12


@pytest.fixture(scope="module")
def trials():
    return small_trials()


@pytest.fixture(scope="module")
def plain(trials):
    preprocessing = Preprocessing(whiten=False).fit(trials)
    settings = {
        "channels": 16,
        "samples": preprocessing.output_samples,
        "embedding": P,
        "subjects": [1],
        "width": 16,
        "depth": 1,
    }
    torch.manual_seed(0)
    encoder = models.build("compact", **settings).eval()
    return Pretrained(
        encoder, None, preprocessing, {"model": {"name": "compact", "settings": settings}}
    )


@pytest.fixture(scope="module")
def remembering(plain):
    pictures = torch.randn(30, P, generator=torch.Generator().manual_seed(0))
    return dataclasses.replace(plain, memory=PictureMemory.of(pictures, 0.05))


def directions(n: int = 5) -> torch.Tensor:
    return F.normalize(torch.randn(n, P, generator=torch.Generator().manual_seed(2)), dim=1)


def test_without_a_memory_embeddings_stay_as_they_are(plain):
    assert torch.equal(plain.recall(directions()), directions())


def test_a_memory_brings_embeddings_nearer_to_pictures(remembering):
    found = directions()
    recalled = remembering.recall(found)
    torch.testing.assert_close(recalled.norm(dim=1), torch.ones(len(found)))
    pictures = remembering.memory.pictures
    before, after = ((x @ pictures.T).amax(1) for x in (found, recalled))
    assert (after > before).all()
    assert not recalled.requires_grad


def test_half_precision_embeddings_are_recalled_in_single(remembering):
    found = directions()
    assert remembering.recall(found.half()).dtype == torch.float32
    torch.testing.assert_close(
        remembering.recall(found.half()), remembering.recall(found), atol=1e-2, rtol=0
    )


def test_the_memory_comes_back_from_the_folder(remembering, trials, tmp_path):
    saved = save_pretrained(tmp_path, remembering, card="# A card")
    assert saved == file_hash(tmp_path / "model.safetensors")
    loaded = from_pretrained(tmp_path)
    assert loaded.weights_hash == saved
    assert loaded.memory.temperature == 0.05
    torch.testing.assert_close(
        loaded.memory.pictures, remembering.memory.pictures, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        loaded.recall(directions()), remembering.recall(directions()), atol=1e-2, rtol=0
    )
    torch.testing.assert_close(loaded.embed(trials), remembering.embed(trials), atol=1e-2, rtol=0)
    assert (tmp_path / "card.md").read_text() == "# A card"


def test_saving_what_was_loaded_changes_nothing(remembering, tmp_path):
    first = save_pretrained(tmp_path / "a", remembering)
    loaded = from_pretrained(tmp_path / "a")
    assert save_pretrained(tmp_path / "b", loaded) == first
    assert (tmp_path / "a" / "config.json").read_bytes() == (
        tmp_path / "b" / "config.json"
    ).read_bytes()


def test_no_memory_comes_back_where_none_was(plain, tmp_path):
    save_pretrained(tmp_path, plain)
    assert json.loads((tmp_path / "config.json").read_text())["memory"] is None
    assert from_pretrained(tmp_path).memory is None


def test_a_memory_of_another_size_is_refused(remembering, tmp_path):
    save_pretrained(tmp_path, remembering)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["memory"]["pictures"] += 1
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="weights: found .*memory|weights: found .*pictures"):
        from_pretrained(tmp_path)


def test_a_memory_that_is_not_finite_is_not_saved(plain, tmp_path):
    broken = dataclasses.replace(plain, memory=PictureMemory.of(torch.ones(3, P), 0.05))
    broken.memory.pictures[1, 1] = float("nan")
    with pytest.raises(InputError, match=r"memory\.pictures: found NaN"):
        save_pretrained(tmp_path, broken)
    assert not (tmp_path / "model.safetensors").exists()
