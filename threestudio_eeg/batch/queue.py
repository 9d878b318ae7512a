"""The queue of a batch: what is to be made, tried again, kept, and left when interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from eeg_encoder.errors import InputError
from eeg_encoder.files import write_json

from .jobs import Job, Outcome, Settings
from .trials import BatchTrial

LOOK_EVERY_S = 0.5
OUTCOME = "outcome.json"


class Engine(Protocol):
    """Where jobs are done."""

    slots: int

    def submit(self, job: Job) -> None: ...
    def finished(self, seconds: float) -> list[tuple[Job, list[dict[str, Any]] | None]]: ...
    def interrupt(self) -> None: ...
    def close(self) -> None: ...


def same_batch(settings: Settings) -> None:
    """Refuse to add to the folder of another batch; remember this one's settings.

    Raises
    ------
    InputError
        When a setting differs from the results there.
    """
    file = Path(settings.out) / "batch.json"
    now = settings.comparable()
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in now.items():
            if before.get(name) != value:
                raise InputError(file, name, value, f"{before.get(name)} (or another --out)")
    write_json(file, now)


def kept(settings: Settings, trial: BatchTrial) -> Outcome | None:
    """What a call before made of a trial, if it was finished."""
    file = settings.folder(trial) / OUTCOME
    if not file.is_file():
        return None
    outcome = Outcome(**json.loads(file.read_text(encoding="utf-8")))
    return outcome if outcome.status == "done" else None


def group(settings: Settings, trials: Sequence[BatchTrial]) -> list[Job]:
    """Jobs of ``settings.together`` trials whose checkpoints are of the same step."""
    if settings.together == 1:
        return [Job((trial,)) for trial in trials]
    by_step: dict[int, list[BatchTrial]] = {}
    for trial in trials:
        by_step.setdefault(checkpoint_step(settings.folder(trial)), []).append(trial)
    k = settings.together
    return [
        Job(tuple(same[i : i + k]))
        for _, same in sorted(by_step.items(), reverse=True)
        for i in range(0, len(same), k)
    ]


def checkpoint_step(folder: Path) -> int:
    """The step of a folder's last checkpoint; 0 without one."""
    from ..builtin.base import load_checkpoint

    last = folder / "ckpts" / "last.ckpt"
    return int(load_checkpoint(last)["global_step"]) if last.is_file() else 0


def run_queue(
    trials: Sequence[BatchTrial],
    settings: Settings,
    engine: Engine,
    *,
    retries: int,
    on_look: Callable[[dict[str, Outcome], Sequence[Job]], None],
) -> dict[str, Outcome]:
    """Make the objects that are missing; a trial that fails is tried again, by itself.

    Parameters
    ----------
    retries
        Further attempts that a trial gets.
    on_look
        Called about twice a second with the outcomes so far and the jobs under way.

    Returns
    -------
    dict
        Outcomes by trial name. Interrupted and never started ones are marked so.
    """
    outcomes = {t.name: done for t in trials if (done := kept(settings, t)) is not None}
    waiting = group(settings, [t for t in trials if t.name not in outcomes])
    attempts: dict[str, int] = {}
    running: list[Job] = []

    def take_in(seconds: float, again: bool) -> None:
        for job, answers in engine.finished(seconds):
            running.remove(job)
            for trial, outcome in zip(job.trials, _outcomes(job, answers), strict=True):
                attempts[trial.name] = attempts.get(trial.name, 0) + 1
                if again and outcome.status == "failed" and attempts[trial.name] <= retries:
                    waiting.append(Job((trial,)))
                    continue
                outcomes[trial.name] = outcome
                write_json(settings.folder(trial) / OUTCOME, asdict(outcome))
        on_look(outcomes, running)

    try:
        while waiting or running:
            while waiting and len(running) < engine.slots:
                running.append(waiting.pop(0))
                engine.submit(running[-1])
            take_in(LOOK_EVERY_S, again=True)
    except KeyboardInterrupt:
        engine.interrupt()
        while running:
            take_in(LOOK_EVERY_S, again=False)
    for trial in trials:
        outcomes.setdefault(trial.name, Outcome(trial.name, "not started"))
    return outcomes


def _outcomes(job: Job, answers: list[dict[str, Any]] | None) -> list[Outcome]:
    if answers is None:
        return [Outcome(t.name, "failed", error="its process died") for t in job.trials]
    return [Outcome(**answer) for answer in answers]
