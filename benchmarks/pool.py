"""Jobs on worker processes side by side, of which any may die."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from threestudio_eeg.batch.jobs import threads_each as shared_threads

Work = Callable[[Connection, Any], None]
"""What a worker runs: answer every job received with a result, and return at None."""


@dataclass
class _Worker:
    process: Any
    connection: Connection
    job: Any = None


def threads_each(workers: int, device: str) -> int:
    """Torch's threads in each of ``workers`` processes: as ``OMP_NUM_THREADS`` says, else one
    beside a GPU, and on a CPU an equal share of the cores.

    Other programs may have the cores too, and threads that wait for one another on busy cores are
    ten times slower than one.
    """
    return shared_threads(workers, None if device == "cpu" else 1)


def run_jobs(
    jobs: Sequence[Any],
    work: Work,
    settings: Any,
    *,
    workers: int,
    on_result: Callable[[Any, Any], None],
    time_budget: float | None = None,
    environments: Sequence[Mapping[str, str]] = ({},),
) -> list[Any]:
    """Spread jobs over processes; a worker that dies loses its job and is replaced.

    Parameters
    ----------
    jobs
        Picklable; done in this order.
    work
        A module-level function ``work(connection, settings)``.
    settings
        Handed to every worker.
    workers
        Processes.
    on_result
        Called with a job and its result as they come; the result is None when the worker died.
    time_budget
        Seconds after which no further job is started.
    environments
        Environment variables given to the workers in turn, such as the GPU that each may see.

    Returns
    -------
    list
        Jobs that were not started.
    """
    deadline = float("inf") if time_budget is None else time.monotonic() + time_budget
    waiting = list(jobs)
    team: list[_Worker] = []
    leaving: list[Any] = []
    surroundings = itertools.cycle(environments)

    def employ(worker: _Worker) -> None:
        """Hand a worker its next job, or send it home."""
        worker.job = waiting.pop(0) if waiting and time.monotonic() < deadline else None
        try:
            worker.connection.send(worker.job)
        except OSError:  # it died between two jobs: the job was not begun
            waiting[:0] = [worker.job] if worker.job is not None else []
            worker.job = None
            replace(worker)
            return
        if worker.job is None:
            dismiss(worker)

    def dismiss(worker: _Worker) -> None:
        """Let a worker go; leaving takes it seconds, in which others are heard."""
        team.remove(worker)
        worker.connection.close()
        leaving.append(worker.process)

    def hire() -> None:
        if waiting and time.monotonic() < deadline:
            team.append(_start(work, settings, next(surroundings)))
            employ(team[-1])

    def replace(worker: _Worker) -> None:
        dismiss(worker)
        hire()

    try:
        for _ in range(workers):
            hire()
        while team:
            for connection in wait([worker.connection for worker in team]):
                worker = next((w for w in team if w.connection is connection), None)
                if worker is None:
                    continue
                try:
                    result = worker.connection.recv()
                except (EOFError, OSError):
                    on_result(worker.job, None)
                    replace(worker)
                else:
                    on_result(worker.job, result)
                    employ(worker)
        for process in leaving:
            process.join()
    finally:
        for process in [*leaving, *(worker.process for worker in team)]:
            process.terminate()
            process.join()
    return waiting


def _start(work: Work, settings: Any, environment: Mapping[str, str]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, settings), daemon=True)
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    theirs.close()
    return _Worker(process, ours)
