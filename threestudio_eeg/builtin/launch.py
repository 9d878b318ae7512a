"""Train, validate, test or export an experiment, as threestudio's ``launch.py`` does."""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, write_json
from threestudio_eeg.provenance import environment

from .base import device_scope, load_checkpoint
from .config import compose, dump_config, load_config
from .optimizers import plain
from .random_state import StepLoader, own_generator
from .registry import find, suggestion
from .saving import make_trial_folder

Mode = Literal["train", "validate", "test", "export"]
MODES = ("train", "validate", "test", "export")

TRAINER_DEFAULTS: dict[str, Any] = {
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 0,
    "val_check_interval": 200,
    "check_val_every_n_epoch": None,
    "precision": "32-true",
    "inference_mode": False,
    "enable_model_summary": False,
}
CHECKPOINT_DEFAULTS: dict[str, Any] = {
    "save_last": True,
    "save_top_k": 1,
    "every_n_train_steps": 100,
    "enable_version_counter": False,
}
_LEVELS = {
    "lightning.pytorch": logging.WARNING,
    "lightning.pytorch.utilities.rank_zero": logging.WARNING,
    "diffusers": logging.ERROR,
    "transformers": logging.ERROR,
}


def launch(
    mode: Mode,
    configs: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    device: Literal["cpu", "cuda", "auto"] = "auto",
    quiet: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Run an experiment on the embedded host and return its trial folder.

    Parameters
    ----------
    mode
        ``train`` trains and then renders the test turntable; the others need ``resume=``.
    configs
        YAML files; later ones are laid over earlier ones.
    overrides
        ``key=value`` words. ``resume=PATH`` goes on from a checkpoint, in its own trial folder;
        ``resume=LAST`` from the newest trial of this name and tag.
    device
        ``auto`` takes CUDA where there is one.
    quiet
        Print no progress.
    on_step
        Called after each training step with the number of steps done.

    Raises
    ------
    InputError
        For bad configs, overrides, checkpoints or folders.
    KeyboardInterrupt
        After Ctrl-C in training, when the step is done and ``ckpts/last.ckpt`` is written. A second
        Ctrl-C stops at once; the checkpoint before remains.
    """
    if mode not in MODES:
        raise InputError("command line", "mode", mode, suggestion(mode, list(MODES)))
    config = load_config(*configs, cli_args=overrides)
    _locate_resume(config)
    with device_scope(_torch_device(device)) as chosen, _calm(quiet):
        trial = make_trial_folder(config.trial_dir)
        _write_command(trial, mode, configs, overrides)
        if mode == "train":
            _write_configs(trial, config, compose(*configs, cli_args=overrides))
            _write_provenance(trial, config, chosen)
        pl.seed_everything(config.seed, workers=True, verbose=False)
        data = find(config.data_type)(config.data)
        system = find(config.system_type)(config.system, resumed=config.resume is not None)
        system.set_save_dir(trial / "save")
        if mode == "train":
            _train(config, system, data, trial, chosen, quiet, on_step)
        else:
            _evaluate(mode, config, system, data, trial, chosen, quiet)
    return trial


def _torch_device(name: str) -> torch.device:
    if name not in ("cpu", "cuda", "auto"):
        raise InputError("command line", "device", name, "cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "command line", "device", "no CUDA device", "cpu, or a CUDA build of torch"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def _locate_resume(config: Any) -> None:
    """Turn ``LAST`` into a path, and go on in the folder of a trial's own checkpoint."""
    if config.resume is None:
        return
    if config.resume == "LAST":
        config.resume = str(_newest_checkpoint(Path(config.exp_dir), config.tag))
    load_checkpoint(config.resume)
    checkpoint = Path(config.resume).resolve()
    if checkpoint.parent.name == "ckpts":
        trial = checkpoint.parent.parent
        config.trial_name, config.trial_dir = trial.name, str(trial)
        stamp = trial.name.partition("@")[2]
        config.timestamp = f"@{stamp}" if stamp else None


def _newest_checkpoint(exp_dir: Path, tag: str) -> Path:
    found = [
        path
        for path in exp_dir.glob("*/ckpts/last.ckpt")
        if path.parent.parent.name.partition("@")[0] in (tag, tag or "trial")
    ]
    if not found:
        raise InputError(exp_dir, "resume=LAST", "no checkpoint", "a trial with ckpts/last.ckpt")
    return max(found, key=lambda path: path.stat().st_mtime)


def _write_command(
    trial: Path, mode: str, configs: Sequence[str | Path], overrides: Sequence[str]
) -> None:
    words = ["threestudio-eeg", "launch", "--host", "builtin"]
    words += [word for path in configs for word in ("--config", str(path))]
    line = shlex.join([*words, f"--{mode}", *overrides])
    path = trial / "cmd.txt"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    with whole_file(path) as temporary:
        temporary.write_text(f"{before}{line}\n", encoding="utf-8")


def _write_configs(trial: Path, config: Any, raw: Any) -> None:
    dump_config(trial / "configs" / "raw.yaml", raw)
    dump_config(trial / "configs" / "parsed.yaml", config)


def _write_provenance(trial: Path, config: Any, device: torch.device) -> None:
    record = {"host": "builtin", "seed": config.seed, "resumed_from": config.resume}
    write_json(trial / "provenance.json", {**record, **environment(device)})


def _train(
    config: Any,
    system: Any,
    data: Any,
    trial: Path,
    device: torch.device,
    quiet: bool,
    on_step: Callable[[int], None] | None = None,
) -> None:
    max_steps = config.trainer.get("max_steps")
    if not isinstance(max_steps, int) or max_steps < 1:
        raise InputError("config", "trainer.max_steps", max_steps, "a positive number of steps")
    stop = StopAfterStep(trial / "ckpts" / "last.ckpt")
    callbacks = [_checkpoints(config, trial), stop, *([StepReport(on_step)] if on_step else [])]
    trainer = _trainer(config, system, trial, device, quiet, callbacks)
    data.setup("fit")
    if config.resume is not None:
        _load_weights(system, config.resume)
    with stop:
        trainer.fit(
            system,
            StepLoader(data.train_dataloader(), max_steps, system),
            own_generator(data.val_dataloader()),
            ckpt_path=config.resume,
        )
    if stop.asked:
        raise KeyboardInterrupt(_how_to_go_on(trial, trainer.global_step))
    data.setup("test")
    trainer.test(system, own_generator(data.test_dataloader()), verbose=False)


def _how_to_go_on(trial: Path, step: int) -> str:
    last, parsed = trial / "ckpts" / "last.ckpt", trial / "configs" / "parsed.yaml"
    words = ["threestudio-eeg", "launch", "--host", "builtin", "--config", str(parsed)]
    command = shlex.join([*words, "--train", f"resume={last}"])
    message = f"stopped after step {step}; to go on: {command}"
    print(message)
    return message


def _evaluate(
    mode: str, config: Any, system: Any, data: Any, trial: Path, device: torch.device, quiet: bool
) -> None:
    if config.resume is not None:
        system.set_resume_status(*_load_weights(system, config.resume))
    elif config.system.get("weights") is None:
        raise InputError("config", "resume", "nothing", "a checkpoint, or system.weights")
    if mode == "export":
        paths = system.to(device).export()
        if not quiet:
            print("\n".join(str(path) for path in paths))
        return
    trainer = _trainer(config, system, trial, device, quiet, [])
    data.setup(mode)
    if mode == "validate":
        trainer.validate(system, own_generator(data.val_dataloader()), verbose=False)
    else:
        trainer.test(system, own_generator(data.test_dataloader()), verbose=False)


def _load_weights(system: Any, path: str) -> tuple[int, int]:
    checkpoint = load_checkpoint(path)
    try:
        system.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(path, "state_dict", reason, "weights of the same config") from error
    return int(checkpoint["epoch"]), int(checkpoint["global_step"])


def _trainer(
    config: Any,
    system: Any,
    trial: Path,
    device: torch.device,
    quiet: bool,
    callbacks: list[pl.Callback],
) -> pl.Trainer:
    given = _known_arguments("trainer", plain(config.trainer), pl.Trainer)
    _refuse_other_loggers(system.cfg.loggers)
    bar = given.pop("enable_progress_bar", True) and not quiet
    loggers = [CSVLogger(trial, name="csv_logs"), TensorBoardLogger(trial, name="tb_logs")]
    return pl.Trainer(
        **{
            **TRAINER_DEFAULTS,
            "accelerator": "gpu" if device.type == "cuda" else "cpu",
            "devices": config.n_gpus if device.type == "cuda" else 1,
            "logger": loggers if callbacks else False,
            "callbacks": [*callbacks, *([TrainingBar()] if bar else [])],
            "enable_checkpointing": bool(callbacks),
            "enable_progress_bar": bar,
            "plugins": [WholeCheckpoints()],
            **given,
        }
    )


def _checkpoints(config: Any, trial: Path) -> ModelCheckpoint:
    given = _known_arguments("checkpoint", plain(config.checkpoint), ModelCheckpoint)
    return ModelCheckpoint(**{**CHECKPOINT_DEFAULTS, "dirpath": trial / "ckpts", **given})


def _known_arguments(section: str, given: dict[str, Any], target: Any) -> dict[str, Any]:
    known = [name for name in inspect.signature(target).parameters if name != "self"]
    for key in given:
        if key not in known:
            raise InputError("config", f"{section}.{key}", "an unknown key", suggestion(key, known))
    return given


def _refuse_other_loggers(loggers: Any) -> None:
    for name, options in loggers.items():
        if (options or {}).get("enable", False):
            raise InputError(
                "system", f"loggers.{name}", "enabled", "false: CSV and TensorBoard are written"
            )


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints appear whole or not at all, and are read without unpickling code."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        with whole_file(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:
                raise InputError(
                    path, "checkpoint", str(error).splitlines()[0], "a disk with room for it"
                ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_checkpoint(path, map_location or "cpu")


class StopAfterStep(pl.Callback):
    """Ctrl-C ends training after the step under way, with a checkpoint written at ``path``.

    Use as a context around ``fit``. The same checkpoint is written at training's regular end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = False
        self._handler: Any = None

    def __enter__(self) -> StopAfterStep:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def _ask(self, *_: Any) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if self.asked:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self.asked:
            trainer.save_checkpoint(self.path)


class StepReport(pl.Callback):
    """Tells a function how many training steps are done."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        self._on_step = on_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self._on_step(trainer.global_step)


class TrainingBar(RichProgressBar):
    """Lightning's bar without its count of epochs: training here is one long one."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"


@contextmanager
def _calm(quiet: bool) -> Iterator[None]:
    """Hide the libraries' remarks about loaders, loggers and weights they leave out."""
    loggers = {logging.getLogger(name): level for name, level in _LEVELS.items()}
    before = {logger: logger.level for logger in loggers}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        for logger, level in loggers.items():
            logger.setLevel(logging.ERROR if quiet else level)
        try:
            yield
        finally:
            for logger, level in before.items():
                logger.setLevel(level)
