"""Drift alone must not decode: the naive split does, the protocols do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from eeg_encoder.protocols import find_control, find_protocol

from .conftest import small_trials

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def leakage():
    spec = importlib.util.spec_from_file_location("leakage", BENCHMARKS / "leakage.py")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def test_drift_alone_decodes_in_the_naive_split_only(leakage):
    rows = leakage.table([0.3], categories=20, stimuli=40, channels=64)
    found = {row["row"]: row for row in rows}
    naive = found.pop("block design, naive random split")
    assert naive["lda"] > 0.9
    assert naive["neighbours"] > 0.9
    assert len(found) == 5
    for row in found.values():
        error = np.sqrt(row["chance"] * (1 - row["chance"]) / row["tested"])
        assert row["lda"] < row["chance"] + 4 * error, row
        assert row["neighbours"] < row["chance"] + 4 * error, row
    message = leakage.refusal(leakage.pure_drift("block", drift=0.1, categories=5, stimuli=6))
    assert "blocks also in train" in message


def test_the_drift_control_shows_the_leak_of_a_naive_split(leakage):
    block = small_trials(order="block", repetitions=8, sessions=1, sfreq=100.0, snr_db=0.0)
    drifting = find_control("drift", step=0.5)(block).in_memory()
    naive = find_protocol("naive", leaks_by_design=True)
    assert leakage.score(drifting, naive)["neighbours"] > 0.85
    rapid = small_trials(order="rapid", repetitions=8, sessions=1, sfreq=100.0, snr_db=0.0)
    drifting = find_control("drift", step=0.5)(rapid).in_memory()
    honest = find_protocol("k-fold-by-stimulus", k=3)
    assert leakage.score(drifting, honest)["neighbours"] < 0.5


def test_the_command_prints_and_writes(leakage, tmp_path, capsys):
    size = ["--categories", "4", "--stimuli", "6", "--channels", "16", "--drift", "0.3"]
    leakage.main([*size, "--json", str(tmp_path / "rows.json")])
    printed = capsys.readouterr().out
    assert printed.count("| 0.3 |") == len(leakage.ROWS)
    assert "refused: k-fold-by-stimulus" in printed
    assert (tmp_path / "rows.json").is_file()
