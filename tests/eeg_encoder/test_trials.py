from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from eeg_encoder.errors import InputError

from .conftest import small_trials


def test_average_is_the_mean_of_each_subject_and_stimulus():
    trials = small_trials(subjects=2)
    averaged = trials.average()
    assert len(averaged) == 2 * 18
    for row in (0, 17, 35):
        same = (trials.stimuli == averaged.stimuli[row]) & (
            trials.subjects == averaged.subjects[row]
        )
        assert same.sum() == 2
        np.testing.assert_allclose(
            averaged.signals[row], trials.signals[same].mean(0), rtol=1e-4, atol=1e-9
        )
        assert set(trials.labels[same]) == {averaged.labels[row]}


def test_select_keeps_fields_together():
    trials = small_trials()
    part = trials.select(np.array([5, 2]))
    assert part.positions.tolist() == [5, 2]
    assert part.stimuli.tolist() == [trials.stimuli[5], trials.stimuli[2]]
    assert part.total == len(trials)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ["A1"]}, "channels: found 1 names"),
        ({"labels": np.zeros(3, np.int64)}, "labels: found 3 entries"),
        ({"label_names": ["a"]}, "labels: found 0 to 2"),
    ],
)
def test_fields_that_disagree_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(small_trials(), **change)
