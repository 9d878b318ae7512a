"""A checkpoint to go on from, whatever ends a training inside upstream threestudio.

Its experiments write their only checkpoint when training ends, so a crash or Ctrl-C would lose all.
What an experiment says about checkpoints stays as it is; beside it, the experiment's own
``ckpts/last.ckpt`` is also written every ten minutes (a share of the time that depends neither on
the speed nor on the number of steps) and on Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eeg_encoder.files import whole_file

EVERY_S = 600.0


class LastCheckpoint:
    """A Lightning callback, made one by :func:`callback`; as a context, Ctrl-C sets ``asked``.

    In training on several GPUs it writes nothing: their clocks differ, and all have to take part.

    Parameters
    ----------
    every_s
        Seconds between two checkpoints.
    clock
        Tells seconds.

    Attributes
    ----------
    path, step
        The checkpoint written last by this callback, and its step.
    """

    def __init__(self, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic):
        self.every_s = every_s
        self.clock = clock
        self.asked = False
        self.path: Path | None = None
        self.step: int | None = None
        self._written_at = 0.0
        self._handler: Any = None

    def __enter__(self) -> LastCheckpoint:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        self._written_at = self.clock()
        keeper, resumed = trainer.checkpoint_callback, trainer.ckpt_path
        if keeper is None or keeper.last_model_path or resumed is None:
            return
        # Lightning forgets which file was the last where the experiment's numbers changed.
        if Path(resumed).name.startswith("last") and Path(resumed).parent == Path(keeper.dirpath):
            keeper.last_model_path = str(resumed)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if self.asked:
            trainer.should_stop = True
        if self.asked or self.clock() - self._written_at >= self.every_s:
            self._save(trainer)

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        if self.asked and self.step != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: Any) -> None:
        keeper = trainer.checkpoint_callback
        self._written_at = self.clock()
        if keeper is None or keeper.dirpath is None or trainer.world_size > 1:
            return
        self.path = Path(keeper.last_model_path or _free_name(Path(keeper.dirpath)))
        # Known to the experiment's own callback, in this run and in one that resumes from the
        # file, it is written again; unknown, the next would be called last-v1.ckpt.
        keeper.last_model_path = str(self.path)
        with whole_file(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        self.step = trainer.global_step

    def _ask(self, *_: Any) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None


def callback(pytorch_lightning: Any, **options: Any) -> Any:
    """Make a :class:`LastCheckpoint` that this Lightning accepts."""
    bases = (LastCheckpoint, pytorch_lightning.Callback)
    return type("LastCheckpointCallback", bases, {})(**options)


def resumable(trainer: type, keep: Any, how_to_go_on: Callable[[Path], str]) -> type:
    """Return a ``Trainer`` class that keeps a checkpoint and says how to go on from it.

    Parameters
    ----------
    trainer
        ``pytorch_lightning.Trainer``.
    keep
        From :func:`callback`.
    how_to_go_on
        Maps the checkpoint to the command line.
    """

    class ResumableTrainer(trainer):  # type: ignore[misc, valid-type]
        """Ctrl-C ends training after the step under way, with a checkpoint; again, at once."""

        def __init__(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> None:
            given = [] if callbacks is None else callbacks
            given = list(given) if isinstance(given, list | tuple) else [given]
            if kwargs.get("enable_progress_bar") is False:  # launch.py passes one all the same
                given = [one for one in given if not _is_progress_bar(one)]
            super().__init__(*args, callbacks=[*given, keep], **kwargs)

        def fit(self, *args: Any, **kwargs: Any) -> None:
            try:
                with keep:
                    super().fit(*args, **kwargs)
            except BaseException:
                self._say()
                raise
            if keep.asked:
                self._say()
                raise KeyboardInterrupt

        def _say(self) -> None:
            if keep.step is not None:
                stopped = f"stopped; the last checkpoint is of step {keep.step}"
                print(f"{stopped}; to go on: {how_to_go_on(keep.path)}", flush=True)

    return ResumableTrainer


def _is_progress_bar(callback: Any) -> bool:
    return any(cls.__name__ == "ProgressBar" for cls in type(callback).__mro__)


def _free_name(folder: Path) -> Path:
    """The first of ``last.ckpt``, ``last-v1.ckpt``, … that is not there, as Lightning counts."""
    path, version = folder / "last.ckpt", 1
    while path.exists():
        path, version = folder / f"last-v{version}.ckpt", version + 1
    return path
