"""The benchmarks of the hash grid and of the renderer run, check themselves, and write figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


def test_hash_grid(tmp_path, capsys):
    import hash_grid

    out = tmp_path / "figures.json"
    arguments = "--device cpu --points 600 --n-levels 3 --log2-hashmap-size 10 --repeats 1 --check"
    assert hash_grid.main([*arguments.split(), "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert set(figures["uniform"]) == set(figures["along rays"]) == set(hash_grid.PASSES)
    assert all(time > 0 for times in figures["uniform"].values() for time in times.values())
    assert capsys.readouterr().out.count("passed") == 2


def test_a_wrong_look_up_fails_the_check(monkeypatch, capsys):
    import hash_grid

    right = hash_grid.encode
    monkeypatch.setattr(hash_grid, "encode", lambda x, *rest, **how: right(x * 0.99, *rest, **how))
    arguments = "--device cpu --points 100 --n-levels 3 --log2-hashmap-size 10 --repeats 1 --check"
    assert hash_grid.main(arguments.split()) == 1
    assert "FAILED" in capsys.readouterr().out


def test_floor_counts_points_features_and_table():
    import hash_grid

    layout = hash_grid.make_layout(3, 2, 2, 8, 4, 2.0)
    forward = 12 * 10 + 4 * 4 * 10 + 8 * layout.n_entries
    assert hash_grid.floor_bytes("forward", 10, layout) == forward
    assert hash_grid.floor_bytes("forward and backward", 10, layout) == 2 * forward


@pytest.mark.parametrize("check", [True, False])
def test_render(tmp_path, capsys, check):
    import render

    out = tmp_path / "figures.json"
    sizes = ["--side", "12", "--samples", "24", "--repeats", "1", "--warm-up", "0"]
    arguments = ["--device", "cpu", *sizes, "--out", str(out), *["--check"] * check]
    assert render.main(arguments) == 0
    figures = json.loads(out.read_text())
    assert figures["march"]["torch"] > 0
    assert figures["networks"]["torch"]["forward and backward"] > 0
    assert figures["whole"]["torch rays"]["samples"] > 100
    assert ("passed" in capsys.readouterr().out) == check
