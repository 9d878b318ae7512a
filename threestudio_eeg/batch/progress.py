"""Progress of a batch: objects done, steps a second, time left."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .jobs import PROGRESS, Job, Outcome, Settings

ENDED = ("done", "failed", "interrupted")


class BatchProgress:
    """A bar over all steps of all objects.

    Parameters
    ----------
    n
        Objects.
    steps
        Of each.
    quiet
        Show nothing.
    """

    def __init__(self, settings: Settings, n: int, steps: int, quiet: bool = False) -> None:
        self._settings, self._steps = settings, steps
        self._began = time.monotonic()
        self._first: float | None = None
        self._total = n * steps
        columns = TextColumn("objects"), BarColumn(), MofNCompleteColumn()
        self._bar = Progress(*columns, TextColumn("{task.fields[pace]}"), disable=quiet)
        self._task = self._bar.add_task("objects", total=n, pace="")

    def __enter__(self) -> BatchProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def look(self, outcomes: Mapping[str, Outcome], running: Sequence[Job]) -> None:
        """Take in where the objects stand."""
        ended = [o for o in outcomes.values() if o.status in ENDED]
        steps = len(ended) * self._steps + sum(
            self._step(job, i) for job in running for i in range(len(job.trials))
        )
        if self._first is None:
            self._first = steps
        pace = pace_words(steps - self._first, self._total - steps, time.monotonic() - self._began)
        self._bar.update(self._task, completed=len(ended), pace=pace)

    def _step(self, job: Job, i: int) -> int:
        file = self._settings.folder(job.trials[i]) / PROGRESS
        try:
            return int(json.loads(file.read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError):
            return 0


def pace_words(done: float, left: float, seconds: float) -> str:
    """Steps a second and time left, such as ``12.5 steps/s, 3 min 20 s left``."""
    if done <= 0 or seconds <= 0:
        return "starting"
    rate = done / seconds
    minutes, rest = divmod(round(left / rate), 60)
    return f"{rate:.1f} steps/s, {minutes} min {rest} s left"
