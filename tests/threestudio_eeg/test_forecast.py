"""Lengths of lists of samples, guessed from those before."""

from __future__ import annotations

import pytest
import torch

from threestudio_eeg.neural_fields.forecast import (
    FORGOTTEN_AFTER,
    MOST,
    MULTIPLE,
    SEEN_FIRST,
    LengthForecast,
)
from threestudio_eeg.neural_fields.marching import Samples


def of_length(n, overflow=None):
    left_out = None if overflow is None else torch.tensor(overflow)
    return Samples(torch.zeros(n), torch.zeros(n), torch.zeros(n, dtype=torch.long), left_out)


def seen(*lengths, n_rays=10):
    forecast = LengthForecast()
    for length in lengths:
        forecast.capacity(n_rays)
        forecast.note(of_length(length))
    return forecast


def test_first_lists_are_as_long_as_they_have_to_be():
    assert seen().capacity(10) is None
    assert seen(*[5000] * (SEEN_FIRST - 1)).capacity(10) is None


def test_then_a_quarter_longer_than_all_before():
    length = seen(*[100_000] * SEEN_FIRST, 80_000).capacity(10)
    assert length % MULTIPLE == 0
    assert 125_000 <= length < 125_000 + MULTIPLE


def test_a_list_that_was_too_short_makes_the_next_longer():
    forecast = seen(*[100_000] * SEEN_FIRST)
    length = forecast.capacity(10)
    forecast.note(of_length(length, overflow=0))
    assert forecast.capacity(10) == length
    forecast.note(of_length(length, overflow=50_000))
    assert forecast.capacity(10) >= 1.25 * (length + 50_000)


def test_another_number_of_rays_starts_anew():
    assert seen(*[5000] * SEEN_FIRST).capacity(11) is None


def test_lengths_are_looked_at_again_after_a_while():
    forecast = seen(*[100_000] * SEEN_FIRST)
    for _ in range(FORGOTTEN_AFTER - SEEN_FIRST):
        forecast.note(of_length(forecast.capacity(10), overflow=0))
    assert forecast.capacity(10) is None


@pytest.mark.parametrize("length", [0, MOST])
def test_no_length_is_fixed_where_it_does_not_pay(length):
    assert seen(*[length] * SEEN_FIRST).capacity(10) is None
