"""Engine of many GPUs and machines: Ray (Moritz et al. 2018, arXiv 1712.05889)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from eeg_encoder.errors import InputError

from .jobs import Job, Settings, packed, threads_each, work_on


class RayEngine:
    """Jobs as Ray tasks. The batch's folder must be the same path on every machine.

    Those side by side share the cores: :func:`.jobs.threads_each`. Ray starts a worker with
    ``OMP_NUM_THREADS=1``, so nothing takes more before the job itself says.

    Parameters
    ----------
    settings
        Of the batch.
    n
        Jobs at a time; 0 for as many as the cluster's GPUs, or CPUs, have room for.
    gpus_per_job
        Share of a GPU, such as 0.25; 0 on CPUs.
    address
        Of a cluster, ``auto`` for the one of this machine; None starts one here.

    Raises
    ------
    InputError
        When Ray is not installed, cannot be reached, or has no GPU for a job.
    """

    def __init__(
        self, settings: Settings, n: int, gpus_per_job: float = 0.0, address: str | None = None
    ) -> None:
        try:
            import ray
        except ImportError as error:
            expected = "the extra: pip install 'threestudio-eeg[distributed]', or --engine local"
            raise InputError("batch", "--engine ray", "no package ray", expected) from error
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            self._connect(n, address)
        total = ray.cluster_resources()
        gpus, cpus = total.get("GPU", 0.0), total.get("CPU", 1.0)
        if gpus_per_job > gpus:
            self.close()
            found = f"{gpus_per_job:g} of {gpus:g} GPUs"
            raise InputError("batch", "--gpus-per-trial", found, "a cluster with room for a job")
        room = int(gpus / gpus_per_job + 1e-6) if gpus_per_job else int(cpus)
        self.slots = min(n, room) if n else max(room, 1)
        here = self._ours and address is None
        threads = threads_each(self.slots, os.cpu_count() if here else int(cpus))
        self._settings = replace(settings, threads=threads)
        options = {"num_gpus": gpus_per_job, "num_cpus": 1, "max_retries": 0}
        self._task = ray.remote(**options)(work_on)  # type: ignore[call-overload,unused-ignore]
        self._running: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Start a job where there is room."""
        self._running[self._task.remote(packed(job, self._settings))] = job

    def finished(self, seconds: float) -> list[tuple[Job, list[dict[str, Any]] | None]]:
        """Jobs that ended within so many seconds; None for one whose process died."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        done: list[tuple[Job, list[dict[str, Any]] | None]] = []
        for reference in ready:
            job = self._running.pop(reference)
            try:
                done.append((job, self._ray.get(reference)))
            except self._ray.exceptions.TaskCancelledError:
                stopped = [{"name": trial.name, "status": "interrupted"} for trial in job.trials]
                done.append((job, stopped))
            except self._ray.exceptions.RayError:
                done.append((job, None))
        return done

    def interrupt(self) -> None:
        """Ask the tasks to stop: Ray raises KeyboardInterrupt in them, where checkpoints follow."""
        for reference in self._running:
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()

    def _connect(self, n: int, address: str | None) -> None:
        options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
        if address is not None:
            options = {"address": address, "log_to_driver": False}
        elif n:
            options["num_cpus"] = n
        try:
            self._ray.init(configure_logging=False, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError("batch", "--ray-address", reason, "a cluster's address") from error
