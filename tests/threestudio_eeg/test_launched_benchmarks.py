"""How a command is run in a process of its own, for the benchmarks of both hosts."""

from __future__ import annotations

import pytest

from benchmarks.launched import Clock, _last_words, checkout_for_one, launched
from benchmarks.upstream_runs import EXPERIMENTS, files, table
from threestudio_eeg.experiments import experiment_config


def test_the_reason_is_the_last_error_and_not_the_progress_bar():
    text = "ValueError: old\nEpoch 0:   0%| 0/4\rEpoch 0: 1%error: a: b: found c\n\nEpoch 0: 2%\n"
    assert _last_words(text) == "error: a: b: found c"
    assert _last_words("one\ntwo\n") == "two"
    assert _last_words("") == "no message"


def test_a_command_that_fails_has_a_reason_and_its_output_is_kept(tmp_path):
    log = tmp_path / "logs" / "cell.txt"
    row = launched(["launch", "--config", "none.yaml", "--train"], device="cpu", log=log)
    assert row["reason"].startswith("exit code 2: error: ")
    assert "none.yaml" in log.read_text()
    assert row["seconds"] > 0


def test_the_first_quarter_of_the_steps_is_not_timed():
    clock = Clock("cpu")
    clock.times = [0.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0]
    assert clock.steps_per_s() == 1.0
    clock.times = [1.0]
    assert clock.steps_per_s() is None


def test_trainings_take_turns_after_two_steps(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    clock, other = Clock("cpu", steps=3, lock=tmp_path / "turn"), (tmp_path / "turn").open("w")
    clock.tick()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_UN)
    clock.tick()
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    clock.tick()
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    other.close()


def test_a_checkout_is_linked_without_its_hidden_files(tmp_path):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("launch.py", ".git"):
        (checkout / name).write_text("")
    linked = checkout_for_one(checkout, tmp_path / "own")
    assert sorted(path.name for path in linked.iterdir()) == ["launch.py"]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_are_shipped_ones(experiment):
    assert all(experiment_config(name).is_file() for name in files(experiment))


def test_no_cell_is_empty():
    row = {"experiment": "a", "libraries": None, "steps": 2, "steps_per_s": None, "peak_gb": None}
    phases = {"train": {"reason": "no | b"}, "export": {"seconds": 3.2, "faces": 7}}
    (line,) = table([{**row, "phases": phases}]).splitlines()[2:]
    cells = ["a, 2 steps", "–", "no: no / b", "no: not run", "no: not run", "runs (3 s, 7 faces)"]
    assert line.strip("| ").split(" | ") == [*cells, "–", "–"]
