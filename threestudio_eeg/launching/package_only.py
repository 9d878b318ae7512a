"""What threestudio's ``launch.py`` does, for an installed package that came without it.

Its wheel has the packages ``threestudio`` and ``extern`` and nothing else. The parts of a run are
the package's own: config, datamodule, system, callbacks. Left out are the snapshot of the code,
for there is no repository to take it from, and the page of gradio.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from ..builtin.base import load_checkpoint


def run(mode: str, file: Path, *, device: str, custom: Path) -> None:
    """Run an experiment file in this process.

    Parameters
    ----------
    mode
        ``train`` (and then ``test``), ``validate``, ``test`` or ``export``.
    file
        The experiment.
    device
        ``cpu`` or ``cuda``.
    custom
        A folder of extensions; it need not exist.
    """
    import pytorch_lightning as pl
    import threestudio
    from threestudio.utils import config as configs
    from threestudio.utils.misc import get_rank

    load_extensions(custom)
    gpus = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
    config = configs.load_config(str(file), cli_args=[], n_gpus=gpus)
    pl.seed_everything(config.seed + (0 if device == "cpu" else get_rank()), workers=True)
    data = threestudio.find(config.data_type)(config.data)
    system = threestudio.find(config.system_type)(config.system, resumed=config.resume is not None)
    system.set_save_dir(os.path.join(config.trial_dir, "save"))
    trainer = pl.Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=-1 if device == "cuda" else 1,
        inference_mode=False,
        callbacks=_callbacks(config, file) if mode == "train" else [],
        logger=_loggers(config, system) if mode == "train" else False,
        **config.trainer,
    )
    if mode == "train":
        trainer.fit(system, datamodule=data, ckpt_path=config.resume)
        trainer.test(system, datamodule=data)
        return
    if config.resume is not None:
        checkpoint = load_checkpoint(config.resume)
        system.set_resume_status(checkpoint["epoch"], checkpoint["global_step"])
    evaluate = getattr(trainer, {"export": "predict"}.get(mode, mode))
    evaluate(system, datamodule=data, ckpt_path=config.resume)


def load_extensions(custom: Path) -> list[str]:
    """Import every folder and ``.py`` file of ``custom``, as ``launch.py`` does; return the names.

    One that fails is named in a line on stderr, and left out: an experiment that needs its modules
    will say so.
    """
    loaded = []
    for path in sorted(custom.iterdir()) if custom.is_dir() else []:
        start = path / "__init__.py" if path.is_dir() else path
        named_off = path.name.startswith(("_", ".")) or path.name.endswith("_disabled")
        if named_off or start.suffix != ".py" or not start.is_file():
            continue
        try:
            _load_module(path.name if path.is_dir() else path.stem, start)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"warning: extension {path} could not be imported: {reason}", file=sys.stderr)
        else:
            loaded.append(path.name)
    return loaded


def _load_module(name: str, start: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, start)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise


def _callbacks(config: Any, file: Path) -> list[Any]:
    from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
    from threestudio.utils.callbacks import ConfigSnapshotCallback, CustomProgressBar

    trial = config.trial_dir
    snapshot = os.path.join(trial, "configs")
    bar = config.trainer.get("enable_progress_bar", True)
    return [
        ModelCheckpoint(dirpath=os.path.join(trial, "ckpts"), **config.checkpoint),
        LearningRateMonitor(logging_interval="step"),
        ConfigSnapshotCallback(str(file), config, snapshot, use_version=False),
        *([CustomProgressBar(refresh_rate=1)] if bar else []),
    ]


def _loggers(config: Any, system: Any) -> list[Any]:
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    trial = config.trial_dir
    own = [TensorBoardLogger(trial, name="tb_logs"), CSVLogger(trial, name="csv_logs")]
    return [*own, *system.get_loggers()]
