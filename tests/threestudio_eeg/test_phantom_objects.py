"""Instances, captions and splits of the phantom, and the bank of its pictures."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from threestudio_eeg.phantom.bank import VIEW_WORDS, all_captions, make_bank
from threestudio_eeg.phantom.categories import CATEGORIES, COLOURS, N_PARAMETERS
from threestudio_eeg.phantom.objects import (
    HELD_OUT_PAIRS,
    SPLITS,
    caption,
    category_of,
    held_out_instances,
    make_instances,
    solids_of,
    wnid,
)
from threestudio_eeg.phantom.pictures import view_word


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("mug", "red", "front"), "a red mug, front view"),
        (("mug", "orange", "back"), "an orange mug, back view"),
        (("umbrella", None, None), "an umbrella"),
        (("umbrella", "blue", None), "a blue umbrella"),
        (("airplane", None, "overhead"), "an airplane, overhead view"),
    ],
)
def test_captions(arguments, wanted):
    assert caption(*arguments) == wanted


def test_an_instance_has_the_caption_without_a_view():
    instance = make_instances("test", 1, 0)[0]
    assert instance.caption == caption(instance.category, instance.colour)


@pytest.mark.parametrize("category", CATEGORIES)
def test_ids_name_their_category(category):
    assert category_of(wnid(category)) == category
    assert category_of(f"{wnid(category)}_20007") == category
    assert wnid(category).startswith("n99")
    assert len(wnid(category)) == 9


def test_stimulus_ids_are_unique_over_all_splits():
    ids = [i.stimulus for split in SPLITS for i in make_instances(split, 30, 0)]
    ids += [i.stimulus for i in held_out_instances(0)]
    assert len(set(ids)) == len(ids)


def test_instances_are_drawn_per_category_and_inside_the_unit_cube():
    instances = make_instances("train", 5, 0)
    assert Counter(i.category for i in instances) == dict.fromkeys(CATEGORIES, 5)
    for instance in instances:
        assert len(instance.parameters) == N_PARAMETERS
        assert all(0 <= value <= 1 for value in instance.parameters)


def test_the_seed_decides():
    assert make_instances("val", 3, 1) == make_instances("val", 3, 1)
    assert make_instances("val", 3, 1) != make_instances("val", 3, 2)
    assert held_out_instances(1) == held_out_instances(1)


def test_no_parameters_are_shared_between_splits():
    drawn = [{i.parameters for i in make_instances(split, 30, 0)} for split in SPLITS]
    drawn.append({i.parameters for i in held_out_instances(0)})
    assert len(set.union(*drawn)) == sum(len(part) for part in drawn)


def test_held_out_pairs_are_never_drawn():
    assert {category for category, _ in HELD_OUT_PAIRS} == set(CATEGORIES)
    assert {colour for _, colour in HELD_OUT_PAIRS} <= set(COLOURS)
    drawn = {(i.category, i.colour) for s in SPLITS for i in make_instances(s, 200, 0)}
    assert not drawn & HELD_OUT_PAIRS
    allowed = {(a, b) for a in CATEGORIES for b in COLOURS} - HELD_OUT_PAIRS
    assert drawn == allowed


def test_held_out_instances_are_the_held_out_pairs():
    instances = held_out_instances(0)
    assert {(i.category, i.colour) for i in instances} == HELD_OUT_PAIRS
    assert len(instances) == len(HELD_OUT_PAIRS)


def test_solids_of_instances_follow_their_parameters():
    solids = solids_of(make_instances("test", 2, 0)[:2])
    points = torch.rand(1, 500, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    first, second = solids.distance(points.expand(2, -1, -1))
    assert not torch.allclose(first, second)


@pytest.fixture(scope="module")
def bank():
    return make_bank(
        make_instances("train", 1, 0)[:3], n_random=3, n_stimuli=1, size=16, seed=0, device="cpu"
    )


def test_bank_shapes(bank):
    assert bank.rgba.shape == (3, 4, 4, 16, 16)
    assert bank.rgba.dtype == torch.uint8
    assert bank.n_views == 4
    assert bank.elevation.shape == bank.azimuth.shape == bank.distance.shape == bank.word.shape
    assert bank.category.tolist() == [0, 1, 2]


def test_bank_words_are_those_of_the_angles(bank):
    for e, a, word in zip(
        bank.elevation.flatten(), bank.azimuth.flatten(), bank.word.flatten(), strict=True
    ):
        assert VIEW_WORDS[int(word)] == view_word(float(e), float(a))


def test_bank_s_last_views_are_stimulus_views(bank):
    generator = torch.Generator().manual_seed(0)
    assert bank.stimulus_view(20, generator).unique().tolist() == [3]
    assert float(bank.azimuth[:, 3].abs().max()) <= 50


def test_drawn_pictures_are_on_random_flat_backgrounds(bank):
    instance, view, rgb = bank.draw(6, torch.Generator().manual_seed(0))
    assert rgb.shape == (6, 3, 16, 16)
    assert 0 <= float(rgb.min()) <= float(rgb.max()) <= 1
    corner = rgb[:, :, 0, 0]
    assert torch.equal(corner, rgb[:, :, 0, -1])
    assert len(corner.unique(dim=0)) == 6
    again = bank.draw(6, torch.Generator().manual_seed(0))
    assert torch.equal(again[2], rgb)


def test_caption_index_finds_the_caption(bank):
    captions = all_captions()
    assert len(set(captions)) == len(captions)
    instance, word = torch.tensor([0, 1, 2]), torch.tensor([0, 1, 3])
    colours, found = list(COLOURS), bank.caption_index(instance, word)
    for i, w, index in zip(instance, word, found, strict=True):
        pair = CATEGORIES[int(bank.category[i])], colours[int(bank.colour[i])]
        assert captions[int(index)] == caption(*pair, VIEW_WORDS[int(w)] or None)
