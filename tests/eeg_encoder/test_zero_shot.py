"""The simulated zero-shot benchmark: its signal-to-noise ratio, its averages and its rows."""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def zero_shot():
    spec = importlib.util.spec_from_file_location("zero_shot", BENCHMARKS / "zero_shot.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def world(zero_shot):
    gallery = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    args = argparse.Namespace(device="cpu", train=400, singles=20, dims=12, repetitions=4)
    return zero_shot.World(gallery, 1, 0, args)


@pytest.mark.parametrize("snr_db", [-30.0, 0.0])
def test_the_stated_ratio_is_that_of_band_and_window(world, snr_db):
    gain = math.sqrt(10 ** (snr_db / 10) / world.ratio)
    specific = gain * world.train[1]
    found = world._power(specific - specific.mean(0)) / world._power(world._noise(400))
    assert 10 * math.log10(found) == pytest.approx(snr_db, abs=1.0)


def test_noise_falls_as_the_root_of_repetitions(world):
    single, averaged = (world.test[n][0] for n in (1, 4))
    ratio = single.sub(single.mean(0)).std() / averaged.sub(averaged.mean(0)).std()
    assert float(ratio) == pytest.approx(2.0, rel=0.1)


def test_every_recipe_gives_rows_beside_a_control(zero_shot, world):
    rows = [row for name in zero_shot.RECIPES for row in zero_shot.measure(world, 10.0, name, 0)]
    assert {(row["recipe"], row["repetitions"]) for row in rows} == {
        (name, n) for name in ("encoding", "ridge", "network") for n in (1, 4)
    }
    closed = [row for row in rows if row["recipe"] != "network"]
    assert all(row["top1"] > 30 for row in closed if row["repetitions"] == 4)
    assert all(row["shuffled_top1"] < 15 for row in rows)
    lines = zero_shot.summary([{"subject": 1, "seed": 0, **row} for row in rows])
    assert len(lines) == 7
