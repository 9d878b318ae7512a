"""The benchmarks of a whole training step, and of a whole object, run and write figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

TINY = ["--size", "tiny", "--device", "cpu", "--repeats", "2", "--warm-up", "1"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    from guidance_setups import make_pipeline

    return make_pipeline("tiny", tmp_path_factory.mktemp("pipeline") / "tiny", "cpu")


@pytest.mark.parametrize("name", ["default", "eager"])
def test_a_step_and_its_parts_are_timed(pipeline, tmp_path, capsys, name):
    import train_step

    result = tmp_path / "row.json"
    inside = ["--one", name, "--lock", tmp_path / "turn", "--result", result]
    assert train_step.main([*TINY, *map(str, inside), "--pipeline", str(pipeline), "--floor"]) == 0
    row = json.loads(result.read_text())
    parts = sum(row[part] for part in train_step.PARTS)
    assert row["whole"] == pytest.approx(parts, rel=0.5)
    assert row["samples"] > 100
    assert 0 < row["mean opacity"] < 1
    assert row["guidance alone"] > 0
    assert row["floor"]["tflop"] > 0
    assert row["stood in"] == []
    assert not [key for key in row if key.startswith("broken")]
    train_step.table({name: row, "broken": {"reason": "no"}}, [name, "broken"])
    assert f"\n{name}" in capsys.readouterr().out


def test_a_setup_that_breaks_costs_only_itself(pipeline, tmp_path, monkeypatch):
    import train_step

    class Process:
        returncode = 3

        def __init__(self, command, stdout, **how):
            self.command = command
            stdout.write(b"out of luck")
            stdout.flush()

        def poll(self):
            return 3

    monkeypatch.setattr(train_step.subprocess, "Popen", Process)
    options = train_step.parse([*TINY, "--setups", "default", "eager", "--floor"])
    options.pipeline = pipeline
    rows = dict(train_step.run_all(options, tmp_path))
    assert {"default", "eager"} == set(rows)
    assert all("out of luck" in row["reason"] for row in rows.values())


def test_an_object_is_timed_by_resolution_and_extrapolated(tmp_path, capsys):
    from benchmarks import object_time

    out = tmp_path / "figures.json"
    few = ["--pipeline", "tiny", "--device", "cpu", "--steps", "10", "--of", "100", "--small"]
    object_time.main([*few, "--out", str(out)])
    figures = json.loads(out.read_text())
    assert [part["side"] for part in figures["segments"]] == [8, 12, 16, 20]
    assert [part["steps"] for part in figures["segments"]] == [2, 2, 2, 4]
    assert figures["meshes"] == ["model.obj"]
    assert figures["extrapolated"]
    steady = sum(part["share"] * part["mean ms"] for part in figures["segments"]) * 100 / 1e3
    once = figures["start and all that happens once s"]
    assert figures["whole s"] == pytest.approx(once + steady + figures["export s"])
    assert "100 steps, extrapolated" in capsys.readouterr().out
