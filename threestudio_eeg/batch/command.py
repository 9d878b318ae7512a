"""``threestudio-eeg batch``: from a list of trials to objects and one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eeg_encoder.errors import InputError
from eeg_encoder.files import writable_folder

from .jobs import Settings
from .local import LocalEngine
from .progress import BatchProgress
from .queue import Engine, run_queue, same_batch
from .table import rows_of, write_table
from .trials import read_trials

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class BatchOptions:
    """Options of the command.

    ``together`` objects share one process and one guidance, ``workers`` processes are side by
    side, spread over ``gpus`` GPUs (default all that are visible). ``retries`` are further
    attempts of a trial that failed.
    """

    source: Path
    configs: tuple[Path, ...]
    out: Path
    trials: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    engine: str = "local"
    workers: int = 1
    together: int = 1
    retries: int = 1
    device: str = "cpu"
    gpus: int | None = None
    gpus_per_trial: float = 1.0
    ray_address: str | None = None
    objects: Path | None = None
    judge: Path | None = None
    vram: float | None = None
    quiet: bool = False


def run_batch(options: BatchOptions, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Make the objects that are missing; write ``results.csv`` and ``results.json``.

    Returns
    -------
    list of dict
        The rows of the table.

    Raises
    ------
    InputError
        For bad options, or a folder that holds another batch.
    """
    _check(options)
    trials = read_trials(options.source, options.trials)
    out = writable_folder(options.out).absolute()
    config = _first_config(options, trials[0])
    overrides = [*_for_budget(options, config, say), *options.overrides]
    settings = Settings(
        out=str(out),
        configs=tuple(str(path) for path in _files(options)),
        overrides=tuple(overrides),
        device=options.device,
        together=options.together,
        objects=None if options.objects is None else str(options.objects.absolute()),
        pipeline=str(config.system.guidance.get("pretrained_model_name_or_path", "phantom")),
        judge=None if options.judge is None else str(options.judge.absolute()),
    )
    same_batch(settings)
    progress = BatchProgress(settings, len(trials), int(config.trainer.max_steps), options.quiet)
    engine = _engine(options, settings)
    try:
        with progress:
            outcomes = run_queue(
                trials, settings, engine, retries=options.retries, on_look=progress.look
            )
    finally:
        engine.close()
    rows = rows_of(trials, outcomes)
    about = {"settings": settings.comparable(), "engine": options.engine}
    write_table(out, rows, about)
    return rows


def _check(options: BatchOptions) -> None:
    if options.engine not in ENGINES:
        raise InputError("command line", "--engine", options.engine, " or ".join(ENGINES))
    if options.gpus_per_trial <= 0:
        raise InputError("command line", "--gpus-per-trial", options.gpus_per_trial, "above 0")
    if options.objects is not None and not options.objects.is_file():
        raise InputError(options.objects, "file", "nothing", "objects.json of a recording")


def _files(options: BatchOptions) -> list[Path]:
    from ..experiments import experiment_config

    return [experiment_config(path).absolute() for path in options.configs]


def _first_config(options: BatchOptions, trial: Any) -> Any:
    """The experiment of the first trial: mistakes show before any process starts."""
    from ..builtin.config import load_config

    words = Settings(str(options.out), (), options.overrides, options.device).words(trial)
    return load_config(*_files(options), cli_args=words)


def _for_budget(options: BatchOptions, config: Any, say: Callable[[str], None]) -> Sequence[str]:
    if options.vram is None:
        return []
    from ..acceleration.budget import settings_for_experiment

    chosen = settings_for_experiment(config, options.vram, together=options.together)
    say(chosen.describe())
    return chosen.arguments()


def _engine(options: BatchOptions, settings: Settings) -> Engine:
    if options.engine == "ray":
        from .ray_engine import RayEngine

        gpus = options.gpus_per_trial if options.device == "cuda" else 0.0
        return RayEngine(settings, options.workers, gpus, options.ray_address)
    return LocalEngine(settings, options.workers, _local_gpus(options))


def _local_gpus(options: BatchOptions) -> int:
    import torch

    here = max(torch.cuda.device_count() if options.device == "cuda" else 1, 1)
    wanted = here if options.gpus is None else options.gpus
    if not 1 <= wanted <= here:
        raise InputError("command line", "--gpus", wanted, f"1 to {here}")
    return wanted
