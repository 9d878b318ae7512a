"""Pictures sampled from a pipeline, and the shares that the judge names right."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from eeg_encoder.errors import InputError
from tests.tiny import tiny_pipeline
from threestudio_eeg.evaluation.judge import HEADS, Judge
from threestudio_eeg.phantom import sampling
from threestudio_eeg.phantom.categories import CATEGORIES, COLOURS
from threestudio_eeg.phantom.objects import held_out_instances, make_instances
from threestudio_eeg.phantom.pictures import random_cameras, side_index, view_word
from threestudio_eeg.pipeline import load_pipeline

N = 4


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return load_pipeline(tiny_pipeline(tmp_path_factory.mktemp("sampling") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def tokens(pipeline):
    return pipeline.encode_text(["a red mug", "a blue chair", "a red mug", "a blue chair"])


def cameras(seed: int = 0):
    return random_cameras(N, torch.Generator().manual_seed(seed))


class FirstOfAll:
    """A judge that always gives the same answer, and keeps what it was shown."""

    def __init__(self, **answer: int) -> None:
        self.answer = answer

    def probabilities(self, rgb):
        self.shown = rgb
        one_hot = torch.nn.functional.one_hot
        return {
            name: one_hot(torch.tensor(self.answer[name]), n).float().expand(len(rgb), -1)
            for name, n in HEADS.items()
        }


def test_samples_are_pictures_and_repeat_with_their_seed(pipeline, tokens):
    first, again = (sampling.sample(pipeline, tokens, cameras(), steps=2) for _ in range(2))
    other = sampling.sample(pipeline, tokens, cameras(), steps=2, seed=1)
    assert first.shape == (N, 3, 16, 16)
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_camera_and_the_caption_make_a_difference(pipeline, tokens):
    seen = sampling.sample(pipeline, tokens, cameras(), steps=2)
    assert not torch.equal(seen, sampling.sample(pipeline, tokens, cameras(1), steps=2))
    assert not torch.equal(seen, sampling.sample(pipeline, tokens, None, steps=2))
    assert not torch.equal(seen, sampling.sample(pipeline, tokens.flip(0), cameras(), steps=2))


def test_a_pipeline_without_a_view_encoder_ignores_cameras(pipeline, tokens):
    bare = dataclasses.replace(pipeline, view_encoder=None)
    seen = sampling.sample(bare, tokens, cameras(), steps=2)
    assert torch.equal(seen, sampling.sample(bare, tokens, None, steps=2))


@pytest.mark.parametrize("protocol", sampling.PROTOCOLS)
def test_every_protocol_is_judged_and_repeats_with_its_seed(pipeline, protocol):
    torch.manual_seed(0)
    judge = Judge().eval()
    first, again = (
        sampling.judge_samples(pipeline, judge, protocol=protocol, n=N, steps=2) for _ in range(2)
    )
    assert set(first) == set(HEADS)
    assert all(share in (0, 0.25, 0.5, 0.75, 1) for share in first.values())
    assert first == again


@pytest.mark.parametrize("protocol", sampling.PROTOCOLS)
def test_shares_are_counted_against_the_objects_and_cameras_drawn(pipeline, protocol):
    held_out = protocol == "held-out pair"
    shown = (held_out_instances(5) if held_out else make_instances("test", 25, 5))[:N]
    sides = side_index(cameras(5).azimuth).tolist()
    truth = {
        "category": [CATEGORIES.index(i.category) for i in shown],
        "colour": [list(COLOURS).index(i.colour) for i in shown],
        "side": sides,
    }
    judge = FirstOfAll(**{name: values[0] for name, values in truth.items()})
    right = sampling.judge_samples(pipeline, judge, protocol=protocol, n=N, steps=1, seed=5)
    assert right == {name: values.count(values[0]) / N for name, values in truth.items()}
    assert judge.shown.shape == (N, 3, 16, 16)


def test_captions_name_the_object_and_the_view(pipeline, monkeypatch):
    said = []
    encode = type(pipeline).encode_text
    monkeypatch.setattr(
        type(pipeline), "encode_text", lambda self, texts: said.append(texts) or encode(self, texts)
    )
    monkeypatch.setattr(sampling, "CHUNK", 3)
    judge = FirstOfAll(category=0, colour=0, side=0)
    sampling.judge_samples(pipeline, judge, n=N, steps=1)
    captions = [text for texts in said for text in texts if text]
    seen = cameras()
    words = [view_word(e, a) for e, a in zip(seen.elevation, seen.azimuth, strict=True)]
    shown = make_instances("test", 25, 0)[:N]
    wanted = [f"{i.caption}, {word} view" for i, word in zip(shown, words, strict=True)]
    assert captions == wanted
    assert len(judge.shown) == N


def test_pictures_need_an_image_projection(pipeline):
    bare = dataclasses.replace(pipeline, image_projection=None)
    judge = FirstOfAll(category=0, colour=0, side=0)
    with pytest.raises(InputError, match="image_projection: found nothing"):
        sampling.judge_samples(bare, judge, protocol="picture", n=N, steps=1)
