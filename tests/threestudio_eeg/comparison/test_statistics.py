"""Paired statistics, against closed forms and scipy's own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eeg_encoder.errors import InputError
from threestudio_eeg.comparison.statistics import (
    bootstrap_interval,
    compare_pairs,
    estimate,
    holm,
)


def drawn(n=40, shift=0.0, seed=0):
    random = np.random.default_rng(seed)
    values = random.normal(shift, 1, n)
    return {f"trial-{i}": float(value) for i, value in enumerate(values)}


def test_the_interval_is_the_normal_one_for_many_trials():
    values = np.array(list(drawn(2000).values()))
    low, high = bootstrap_interval(values, n_draws=2000)
    half = 1.96 * values.std() / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - half, abs=0.006)
    assert high == pytest.approx(values.mean() + half, abs=0.006)


def test_a_constant_has_no_spread():
    found = estimate([0.5] * 7)
    assert (found.mean, found.se, found.low, found.high, found.n) == (0.5, 0, 0.5, 0.5, 7)


def test_pairs_are_trials_that_both_have_whatever_their_order():
    first, second = drawn(seed=1), drawn(seed=2)
    expected = np.array([first[t] - second[t] for t in sorted(set(first) - {"trial-3"})])
    del second["trial-3"]
    found = compare_pairs(first, dict(reversed(second.items())))
    assert found.n == 39
    assert found.mean == pytest.approx(expected.mean())
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(expected).pvalue)
    assert (found.more, found.less) == ((expected > 0).sum(), (expected < 0).sum())


def test_pairing_finds_what_the_spread_of_trials_hides():
    first = drawn()
    second = {trial: value - 0.1 for trial, value in first.items()}
    found = compare_pairs(first, second)
    assert found.low == pytest.approx(0.1)
    assert found.wilcoxon < 1e-6
    unpaired = stats.mannwhitneyu(list(first.values()), list(second.values())).pvalue
    assert unpaired > 0.3


def test_the_sign_test_is_a_fair_coin():
    first = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}
    found = compare_pairs(first, dict.fromkeys(first, 0.0))
    assert (found.more, found.less, found.equal) == (3, 0, 1)
    assert found.sign == pytest.approx(2 * 0.5**3)


def test_equal_conditions_do_not_differ():
    found = compare_pairs(drawn(), drawn())
    assert (found.wilcoxon, found.sign, found.low, found.high) == (1, 1, 0, 0)


def test_false_alarms_come_as_often_as_promised():
    p = [compare_pairs(drawn(20, seed=i), drawn(20, seed=1000 + i)).wilcoxon for i in range(200)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.1


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1]


def test_no_shared_trial_and_nan_are_refused():
    with pytest.raises(InputError, match="trials"):
        compare_pairs({"a": 1.0}, {"b": 1.0})
    with pytest.raises(InputError, match="NaN"):
        estimate([1.0, float("nan")])
