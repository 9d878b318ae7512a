"""Engine of one machine: worker processes side by side, of which any may die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from .jobs import THREADS, Job, Settings, packed, threads_each, work_on

GRACE_S = 120.0
"""How long an interrupted worker may take for its step and its checkpoint."""


@dataclass
class _Worker:
    process: Any
    connection: Connection
    job: Job | None = None


class LocalEngine:
    """Jobs on ``n`` processes; a process that dies loses its job only and is replaced.

    They share the cores: :func:`.jobs.threads_each`.

    Parameters
    ----------
    settings
        Of the batch.
    n
        Processes.
    gpus
        Spread the processes over as many GPUs.
    """

    def __init__(self, settings: Settings, n: int, gpus: int = 1) -> None:
        self.slots = n
        self._settings = replace(settings, threads=threads_each(n))
        self._gpus = gpus
        self._workers: dict[int, _Worker] = {}

    def submit(self, job: Job) -> None:
        """Hand a job to a free process."""
        busy = {slot for slot, worker in self._workers.items() if worker.job is not None}
        slot = next(slot for slot in range(self.slots) if slot not in busy)
        worker = self._workers.get(slot) or self._start(slot)
        try:
            worker.connection.send(packed(job, self._settings))
        except OSError:  # it died between two jobs
            worker = self._start(slot)
            worker.connection.send(packed(job, self._settings))
        worker.job = job

    def finished(self, seconds: float) -> list[tuple[Job, list[dict[str, Any]] | None]]:
        """Jobs that ended within so many seconds; None for one whose process died."""
        busy = {w.connection: s for s, w in self._workers.items() if w.job is not None}
        done: list[tuple[Job, list[dict[str, Any]] | None]] = []
        for ready in wait(list(busy), seconds):
            slot = busy[cast(Connection, ready)]
            worker = self._workers[slot]
            job, worker.job = worker.job, None
            assert job is not None
            try:
                done.append((job, worker.connection.recv()))
            except (EOFError, OSError):
                del self._workers[slot]
                worker.process.join()
                done.append((job, None))
        return done

    def interrupt(self) -> None:
        """Ask the workers to stop after their step, with a checkpoint."""
        for worker in self._workers.values():
            if worker.job is not None and worker.process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(worker.process.pid, signal.SIGINT)

    def close(self) -> None:
        """End the workers: the idle ones leave, the others are ended."""
        for worker in self._workers.values():
            if worker.job is not None:
                worker.process.terminate()
            worker.connection.close()
        for worker in self._workers.values():
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
        self._workers = {}

    def _start(self, slot: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        gpu = str(slot % self._gpus) if self._gpus > 1 else None
        process = context.Process(target=_work, args=(theirs, gpu), daemon=True)
        with _threads(self._settings.threads):
            process.start()
        theirs.close()
        self._workers[slot] = _Worker(process, ours)
        return self._workers[slot]


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """What is started herein finds ``n`` threads in its environment."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = str(n)
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


def _work(connection: Connection, gpu: str | None) -> None:
    """A worker: do the jobs that come in. Only the batch interrupts it, not the terminal."""
    os.setpgrp()
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    with suppress(KeyboardInterrupt, EOFError, OSError):
        while True:
            connection.send(work_on(connection.recv()))


def _leave_with_parent() -> None:
    """Stop as at Ctrl-C, with a checkpoint, when the batch itself was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)
