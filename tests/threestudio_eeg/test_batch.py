from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg.batch import queue
from threestudio_eeg.batch.command import BatchOptions, run_batch
from threestudio_eeg.batch.jobs import (
    THREADS,
    Job,
    Outcome,
    Settings,
    packed,
    threads_each,
    unpacked,
    work_on,
)
from threestudio_eeg.batch.local import LocalEngine
from threestudio_eeg.batch.progress import pace_words
from threestudio_eeg.batch.ray_engine import RayEngine
from threestudio_eeg.batch.table import markdown, rows_of, write_table
from threestudio_eeg.batch.trials import BatchTrial, read_trials
from threestudio_eeg.cli import app

from .tiny_experiment import tiny_experiment


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")
    eeg = tiny_conditioning(folder.parent / "eeg.safetensors", folder)
    return tiny_experiment(folder.parent / "tiny.yaml", folder), eeg


def settings(out: Path, **changes: Any) -> Settings:
    return Settings(str(out), ("tiny.yaml",), (), "cpu", **changes)


def trial(name: str) -> BatchTrial:
    return BatchTrial(name, "eeg.safetensors", name, f"picture of {name}")


class Scripted:
    """An engine that answers from a script: statuses by trial, None for a process that dies."""

    slots = 2

    def __init__(self, script: dict[str, list[str | None]], interrupt_after: int = -1) -> None:
        self.script, self.left = script, interrupt_after
        self.jobs: list[Job] = []
        self.seen: list[str] = []

    def submit(self, job: Job) -> None:
        assert len(self.jobs) < self.slots
        self.jobs.append(job)
        self.seen.append(job.key)

    def finished(self, seconds: float) -> list[tuple[Job, Any]]:
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt
        self.left -= 1
        job = self.jobs.pop(0)
        statuses = [self.script[t.name].pop(0) for t in job.trials]
        if None in statuses:
            return [(job, None)]
        answers = [{"name": t.name, "status": s} for t, s in zip(job.trials, statuses, strict=True)]
        return [(job, answers)]

    def interrupt(self) -> None:
        for job in self.jobs:
            for t in job.trials:
                self.script[t.name].insert(0, "interrupted")

    def close(self) -> None:
        pass


def run(names: str, script: dict[str, list[str | None]], out: Path, **options: Any) -> Any:
    engine = Scripted(script, options.pop("interrupt_after", -1))
    retries = options.pop("retries", 1)
    outcomes = queue.run_queue(
        [trial(n) for n in names],
        settings(out, **options),
        engine,
        retries=retries,
        on_look=lambda *_: None,
    )
    return {n: o.status for n, o in outcomes.items()}, engine.seen


def test_a_failed_trial_and_one_whose_process_died_are_tried_again(tmp_path: Path) -> None:
    script = {"a": ["failed", "done"], "b": [None, "done"], "c": ["failed", "failed"]}
    statuses, seen = run("abc", script, tmp_path)
    assert statuses == {"a": "done", "b": "done", "c": "failed"}
    assert sorted(seen) == ["a", "a", "b", "b", "c", "c"]


def test_after_a_failure_together_the_objects_are_made_one_by_one(tmp_path: Path) -> None:
    script: dict[str, list[str | None]] = {"a": [None, "done"], "b": [None, "done"]}
    statuses, seen = run("ab", script, tmp_path, together=2)
    assert statuses == {"a": "done", "b": "done"}
    assert seen == ["a b", "a", "b"]


def test_what_is_done_is_kept_and_ctrl_c_leaves_the_rest(tmp_path: Path) -> None:
    script: dict[str, list[str | None]] = {n: ["done", "done"] for n in "abcd"}
    statuses, _ = run("abcd", script, tmp_path, interrupt_after=1)
    assert sorted(statuses.values()) == ["done", "interrupted", "interrupted", "not started"]
    statuses, seen = run("abcd", {n: ["done"] for n in "abcd"}, tmp_path)
    assert set(statuses.values()) == {"done"}
    assert seen == ["b", "c", "d"]


def test_jobs_survive_being_text(tmp_path: Path) -> None:
    job, given = Job((trial("a"), trial("b"))), settings(tmp_path, together=2)
    assert unpacked(packed(job, given)) == (job, given)


def test_a_list_file_names_files_and_trials(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    eeg = inputs[1]
    listed = tmp_path / "list.txt"
    listed.write_text(f"# two\n{eeg} trial-1\n\n{eeg} 0  # first row\n")
    assert [t.trial for t in read_trials(listed)] == ["trial-1", "trial-0"]
    assert [t.trial for t in read_trials(listed, ["trial-0"])] == ["trial-0"]
    everything = [t.trial for t in read_trials(eeg)]
    assert everything[:2] == ["trial-0", "trial-1"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{eeg} 1\n{eeg} trial-1\n", "more than once"),
        ("{eeg} nobody\n", "trial: found nobody"),
        ("# nothing\n", "trials: found none"),
    ],
)
def test_bad_lists_are_named(
    inputs: tuple[Path, Path], tmp_path: Path, content: str, match: str
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(content.format(eeg=inputs[1]))
    with pytest.raises(InputError, match=match):
        read_trials(listed)


def test_another_batch_s_folder_is_refused(tmp_path: Path) -> None:
    queue.same_batch(settings(tmp_path))
    queue.same_batch(settings(tmp_path, threads=4))
    with pytest.raises(InputError, match="overrides"):
        queue.same_batch(Settings(str(tmp_path), ("tiny.yaml",), ("seed=1",), "cpu"))


def test_the_table_has_the_figures_of_all_trials(tmp_path: Path) -> None:
    outcomes = {
        "a": Outcome("a", "done", 3.0, 4, files={"mesh": "a.glb"}, figures={"fscore": 0.25}),
        "b": Outcome("b", "failed", error="x | y"),
    }
    rows = rows_of([trial("a"), trial("b")], outcomes)
    write_table(tmp_path, rows, {"engine": "local"})
    with (tmp_path / "results.csv").open(encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    assert [(r["trial"], r["status"], r["fscore"]) for r in read] == [
        ("a", "done", "0.25"),
        ("b", "failed", ""),
    ]
    assert json.loads((tmp_path / "results.json").read_text())["trials"][0]["mesh"] == "a.glb"
    assert "| a | picture of a | done | 3 | 0.25 |" in markdown(rows)
    assert "x / y" in markdown(rows)


@pytest.mark.parametrize(("done", "words"), [(0, "starting"), (50, "5.0 steps/s, 3 min 20 s left")])
def test_pace(done: int, words: str) -> None:
    assert pace_words(done, 1000, 10.0) == words


def test_a_bad_trial_is_an_outcome(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    missing = BatchTrial("a", str(tmp_path / "none.safetensors"), "a", "s")
    given = Settings(str(tmp_path), (str(inputs[0]),), (), "cpu")
    (outcome,) = work_on(packed(Job((missing,)), given))
    assert outcome["status"] == "failed"
    assert "none.safetensors" in outcome["error"]


def test_the_command_makes_objects_together_and_keeps_them(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    config, eeg = inputs
    words = ["batch", str(eeg), "--config", str(config), "--out", str(tmp_path), "--trial", "0"]
    words += ["--trial", "1", "--together", "2", "--device", "cpu"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    assert "2 of 2 objects" in first.output
    rows = json.loads((tmp_path / "results.json").read_text())["trials"]
    assert [(r["status"], r["steps"]) for r in rows] == [("done", 4), ("done", 4)]
    films = list(tmp_path.glob("trials/*/save/it4-test.mp4"))
    assert len(films) == 2
    written = films[0].stat().st_mtime_ns
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert films[0].stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--engine", "slurm"], "--engine: found slurm"),
        (["--objects", "nowhere.json"], "nowhere.json"),
        (["--workers", "0"], "--workers"),
        (["--vram", "1"], "at least"),
    ],
)
def test_bad_options_are_one_line(
    inputs: tuple[Path, Path], tmp_path: Path, more: list[str], match: str
) -> None:
    config, eeg = inputs
    words = ["batch", str(eeg), "--config", str(config), "--out", str(tmp_path), *more]
    result = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert result.exit_code == 2
    assert match in result.output.replace("\n", "")


@pytest.mark.slow
def test_ctrl_c_then_the_same_command_finishes(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    config, eeg = inputs
    words = ["-m", "threestudio_eeg.cli", "batch", str(eeg), "--config", str(config)]
    words += ["--out", str(tmp_path), "--trial", "0", "--device", "cpu", "trainer.max_steps=80"]
    started = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "trials" / "trial-0" / "ckpts" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(started.pid, signal.SIGINT)
    output, _ = started.communicate(timeout=60)
    assert started.returncode == 1, output
    (row,) = json.loads((tmp_path / "results.json").read_text())["trials"]
    assert row["status"] == "interrupted"
    assert 0 < queue.checkpoint_step(checkpoint.parent.parent) < 80
    options = BatchOptions(eeg, (config,), tmp_path, ("0",), ("trainer.max_steps=80",), quiet=True)
    (row,) = run_batch(options)
    assert (row["status"], row["steps"]) == ("done", 80)


def test_a_worker_that_dies_loses_its_job_only(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    config, eeg = inputs
    engine = LocalEngine(Settings(str(tmp_path), (str(config),), (), "cpu"), 1)
    job = Job(tuple(read_trials(eeg, ["0"])))
    engine.submit(job)
    os.kill(engine._workers[0].process.pid, signal.SIGKILL)
    assert engine.finished(30) == [(job, None)]
    engine.submit(job)
    ((_, answers),) = engine.finished(60)
    engine.close()
    assert answers is not None
    assert answers[0]["status"] == "done"


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv(THREADS, raising=False)
    assert [threads_each(n) for n in (0, 1, 3, 40)] == [16, 16, 5, 1]
    assert threads_each(4, cores=64) == 16
    monkeypatch.setenv(THREADS, "2")
    assert threads_each(3) == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_job_takes_its_threads_on_any_device(device: str, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    missing = BatchTrial("a", str(tmp_path / "none.safetensors"), "a", "s")
    given = Settings(str(tmp_path), (str(tmp_path / "none.yaml"),), (), device, threads=before + 1)
    try:
        (outcome,) = work_on(packed(Job((missing,)), given))
        assert outcome["status"] == "failed"
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_a_worker_starts_with_its_share_of_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv(THREADS, raising=False)
    engine = LocalEngine(Settings(str(tmp_path), (), (), "cuda"), 4)
    process = engine._start(0).process
    environment, found = Path(f"/proc/{process.pid}/environ"), b""
    deadline = time.monotonic() + 20
    try:  # until it runs its own program, a process shows its parent's environment
        while b"OMP_NUM_THREADS=3\0" not in found and time.monotonic() < deadline:
            found = environment.read_bytes()
            time.sleep(0.01)
    finally:
        process.kill()
        engine.close()
    assert b"OMP_NUM_THREADS=3\0" in found
    assert engine._settings.threads == 3
    assert THREADS not in os.environ


class FakeRay:
    """Ray's calls that an engine starts with, on a cluster of 48 cores and 4 GPUs."""

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 48.0, "GPU": 4.0}

    def remote(self, **options: Any) -> Any:
        return lambda function: function


def test_jobs_on_ray_share_the_clusters_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    monkeypatch.delenv(THREADS, raising=False)
    engine = RayEngine(Settings(str(tmp_path), (), (), "cuda"), 0, gpus_per_job=0.5)
    assert (engine.slots, engine._settings.threads) == (8, 6)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"threestudio-eeg\[distributed\]"):
        RayEngine(settings(tmp_path), 2)


@pytest.mark.slow
def test_ray_makes_the_objects(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    config, eeg = inputs
    options = BatchOptions(
        eeg, (config,), tmp_path, ("0", "1"), engine="ray", workers=2, quiet=True
    )
    rows = run_batch(options)
    assert [(r["status"], r["steps"]) for r in rows] == [("done", 4), ("done", 4)]
