"""A job: one object, or several together, made by whichever process takes it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError
from eeg_encoder.files import write_json

from .trials import BatchTrial

PROGRESS = "progress.json"
PROGRESS_EVERY_S = 1.0
TRIALS = "trials"
THREADS = "OMP_NUM_THREADS"
"""What OpenMP and BLAS libraries read as they are loaded, so before a worker's first import."""


@dataclass(frozen=True)
class Settings:
    """What all objects of a batch have in common."""

    out: str
    configs: tuple[str, ...]
    overrides: tuple[str, ...]
    device: str
    together: int = 1
    objects: str | None = None
    pipeline: str | None = None
    judge: str | None = None
    film: bool = True
    threads: int = 1
    """Of each process; the engine's to say."""

    def folder(self, trial: BatchTrial) -> Path:
        """An object's trial folder."""
        return Path(self.out) / TRIALS / trial.name

    def comparable(self) -> dict[str, Any]:
        """What two calls that add to the same folder must share."""
        left_out = ("out", "device", "threads", "together", "film")
        kept = {k: v for k, v in asdict(self).items() if k not in left_out}
        return json.loads(json.dumps({**kept, "in_groups": self.together > 1}))

    def words(self, trial: BatchTrial) -> list[str]:
        """``key=value`` words of an object."""
        prompt = "system.prompt_processor"
        return [
            f"exp_root_dir={self.out}",
            f"name={TRIALS}",
            f"tag={trial.name}",
            "use_timestamp=false",
            f"{prompt}.conditioning={trial.conditioning}",
            f"{prompt}.trial={trial.trial}",
            *self.overrides,
        ]


@dataclass(frozen=True)
class Job:
    """Objects to make in one go."""

    trials: tuple[BatchTrial, ...]

    @property
    def key(self) -> str:
        return " ".join(trial.name for trial in self.trials)


@dataclass
class Outcome:
    """What became of an object. ``status`` is done, failed or interrupted."""

    name: str
    status: str
    seconds: float = 0.0
    steps: int = 0
    error: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)


def threads_each(workers: int, cores: int | None = None) -> int:
    """Threads of each of ``workers`` processes: ``OMP_NUM_THREADS`` where the caller set it, else
    an equal share of the cores, one at least.

    Also beside a GPU, which is fed from the cores. Processes that each take all of the cores wait
    for one another.

    Parameters
    ----------
    workers
        Processes side by side.
    cores
        That they share; default those of this machine.
    """
    given = os.environ.get(THREADS, "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, (cores or os.cpu_count() or 1) // max(workers, 1))


def packed(job: Job, settings: Settings) -> str:
    """A job as text, for a process that has nothing but this package."""
    return json.dumps({"trials": [asdict(t) for t in job.trials], "settings": asdict(settings)})


def unpacked(text: str) -> tuple[Job, Settings]:
    """What :func:`packed` packed."""
    content = json.loads(text)
    settings = content["settings"]
    settings.update({name: tuple(settings[name]) for name in ("configs", "overrides")})
    return Job(tuple(BatchTrial(**trial) for trial in content["trials"])), Settings(**settings)


def work_on(text: str) -> list[dict[str, Any]]:
    """Do a packed job; what goes wrong with it is an outcome, Ctrl-C is one too."""
    job, settings = unpacked(text)
    started = time.monotonic()
    try:
        outcomes = make(job, settings)
    except KeyboardInterrupt:
        outcomes = [Outcome(t.name, "interrupted", _since(started)) for t in job.trials]
    except Exception as error:
        reason = " ".join(f"{_kind(error)}{error}".split())[:500]
        outcomes = [Outcome(t.name, "failed", _since(started), error=reason) for t in job.trials]
    return [asdict(outcome) for outcome in outcomes]


def make(job: Job, settings: Settings) -> list[Outcome]:
    """Optimise the objects of a job, from their checkpoints where there are any, and look at them.

    Seconds are those of this call; objects made together share them equally.
    """
    os.environ["THREESTUDIO_EEG_HOST"] = "builtin"
    import torch

    from ..plugin import register_all

    register_all()
    torch.set_num_threads(settings.threads)
    started = time.monotonic()
    steps = (_one if settings.together == 1 else _several)(job, settings)
    seconds = round((time.monotonic() - started) / len(job.trials), 3)
    return [_looked_at(trial, settings, seconds, steps) for trial in job.trials]


def _one(job: Job, settings: Settings) -> int:
    from ..builtin.base import load_checkpoint
    from ..builtin.launch import launch

    (trial,) = job.trials
    last = settings.folder(trial) / "ckpts" / "last.ckpt"
    resume = [f"resume={last}"] if last.is_file() else []
    report = _reporter([settings.folder(trial)])
    launch(
        "train",
        [Path(config) for config in settings.configs],
        [*settings.words(trial), *resume],
        device=settings.device,  # type: ignore[arg-type]
        quiet=True,
        on_step=report,
    )
    return int(load_checkpoint(last)["global_step"])


def _several(job: Job, settings: Settings) -> int:
    from .together import Together

    configs = [Path(config) for config in settings.configs]
    group = Together(configs, [settings.words(t) for t in job.trials], settings.device)
    group.train(_reporter([settings.folder(trial) for trial in job.trials]))
    if settings.film:
        for member in group.members:
            group.film(member)
    return group.step


def _reporter(folders: Sequence[Path]) -> Callable[[int], None]:
    """Write how many steps are done beside the objects, about once a second."""
    written = -PROGRESS_EVERY_S

    def report(step: int) -> None:
        nonlocal written
        if time.monotonic() - written >= PROGRESS_EVERY_S:
            written = time.monotonic()
            for folder in folders:
                write_json(folder / PROGRESS, {"step": step})

    return report


def _looked_at(trial: BatchTrial, settings: Settings, seconds: float, steps: int) -> Outcome:
    """Mesh of an object, and its figures where the truth is known; an empty field has none."""
    folder = settings.folder(trial)
    done = Outcome(trial.name, "done", seconds, steps, files={"folder": str(folder)})
    try:
        if settings.objects is None:
            done.files["mesh"] = str(_mesh(folder, settings.device))
        else:
            done.figures = _figures(folder, trial, settings)
            done.files["mesh"] = str(folder / "evaluation" / "object.glb")
    except InputError as error:
        done.error = f"no mesh: {error}"
    return done


def _mesh(folder: Path, device: str) -> Path:
    from ..evaluation.runs import export_glb, open_run

    mesh = open_run(folder, device=device).make_exporter().coloured_mesh()
    return export_glb(mesh, folder / "object.glb")


def _figures(folder: Path, trial: BatchTrial, settings: Settings) -> dict[str, Any]:
    from ..evaluation.runs import evaluate_run

    figures = evaluate_run(
        folder,
        folder / "evaluation",
        objects=settings.objects,
        stimulus=trial.stimulus,
        pipeline=settings.pipeline or "phantom",
        judge=settings.judge,
        device=settings.device,
    )
    return {k: v for k, v in figures.items() if k not in ("run", "stimulus")}


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _kind(error: Exception) -> str:
    return "" if isinstance(error, InputError) else f"{type(error).__name__}: "
