"""Distances of sets, against closed forms; and n-way accuracy, against drawing."""

from __future__ import annotations

import numpy as np
import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.comparison.distributions import (
    frechet_distance,
    inception_score,
    kernel_distance,
)
from threestudio_eeg.evaluation.n_way import n_way_accuracy


def normal(n, width=3, mean=0.0, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(mean, scale, (n, width))


def test_frechet_of_normal_distributions():
    a, b = normal(40_000), normal(40_000, mean=1.0, scale=2.0, seed=1)
    assert frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.03)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_counts_correlation():
    a = normal(40_000, width=2)
    b = a @ np.linalg.cholesky([[1, 0.9], [0.9, 1]]).T
    expected = 4 - 2 * (np.sqrt(1.9) + np.sqrt(0.1))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=0.05)


def test_the_kernel_distance_has_no_bias_and_grows():
    same = [kernel_distance(normal(12, seed=i), normal(9, seed=500 + i)) for i in range(300)]
    assert abs(np.mean(same)) < 3 * np.std(same) / len(same) ** 0.5 + 1e-12
    assert min(same) < 0
    assert kernel_distance(normal(50), normal(50, mean=1.0, seed=1)) > 1


@pytest.mark.parametrize(
    ("probabilities", "score"),
    [(np.eye(4), 4.0), (np.full((6, 4), 0.25), 1.0), (np.eye(4)[[0, 0, 0]], 1.0)],
)
def test_inception_score_of_sure_and_unsure_judges(probabilities, score):
    assert inception_score(probabilities) == pytest.approx(score, rel=1e-6)


def test_sets_of_one_are_refused():
    with pytest.raises(InputError, match="features"):
        frechet_distance(normal(1), normal(5))


@pytest.mark.parametrize(("ways", "top"), [(2, 1), (10, 1), (10, 3), (20, 5)])
def test_n_way_accuracy_is_the_mean_over_draws(ways, top):
    random = np.random.default_rng(0)
    scores = random.random((6, 20))
    won = []
    for view in scores:
        for _ in range(2000):
            others = random.choice(np.arange(1, 20), ways - 1, replace=False)
            won.append((view[others] > view[0]).sum() < top)
    found = n_way_accuracy(scores, 0, ways=ways, top=top)
    assert found == pytest.approx(np.mean(won), abs=4 * np.std(won) / len(won) ** 0.5 + 1e-9)


def test_n_way_accuracy_of_guessing_is_chance_and_ties_do_not_win():
    scores = np.random.default_rng(0).random((4000, 20))
    assert n_way_accuracy(scores, 7, ways=10, top=3) == pytest.approx(0.3, abs=0.02)
    assert n_way_accuracy(np.ones((3, 20)), 0, ways=2) == 0
    assert n_way_accuracy(np.eye(20)[[4, 4]], 4, ways=20) == 1


@pytest.mark.parametrize(("ways", "top", "field"), [(21, 1, "ways"), (1, 1, "ways"), (5, 5, "top")])
def test_impossible_ways_are_refused(ways, top, field):
    with pytest.raises(InputError, match=field):
        n_way_accuracy(np.ones((2, 20)), 0, ways=ways, top=top)
