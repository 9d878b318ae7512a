"""One ``threestudio-eeg`` command in a process of its own: steps per second and peak memory.

:func:`launched` starts the process; run as a script, this file is that process. Where PyAV is not
installed, films are left out. With a lock, trainings of processes side by side take turns, while
their beginnings and ends overlap: then steps per second are those of a device for itself.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 0.25
"""Share of the steps that is not timed."""
FREE_STEPS = 2
"""Steps before a training waits for its turn: kernels are compiled in them."""
ERROR = re.compile(r"(?:\b\w*Error|\berror): .+")
LONGEST_REASON = 300
TIME_LIMIT_S = 400.0


def launched(
    words: Sequence[str],
    *,
    device: str,
    steps: int | None = None,
    processor_time: bool = False,
    lock: Path | None = None,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    time_limit: float = TIME_LIMIT_S,
) -> dict[str, Any]:
    """Run ``threestudio-eeg`` with ``words``; what went wrong is the row's ``reason``.

    Parameters
    ----------
    words
        Of the command line, from ``launch`` on.
    device
        ``cpu`` or ``cuda``: whose memory is meant.
    steps
        Training steps that are expected.
    processor_time
        Count the process's own seconds.
    lock
        A file: trainings that name the same one take turns.
    environment
        Variables of the process beside this one's.
    log
        Where its output goes; by default nowhere.
    time_limit
        Seconds after which it is ended.
    """
    with tempfile.TemporaryDirectory(prefix="launched-") as here:
        result = Path(here) / "result.json"
        told = {"device": device, "steps": steps, "processor_time": processor_time}
        told |= {"lock": None if lock is None else str(lock), "result": str(result)}
        command = [sys.executable, "-m", "benchmarks.launched", json.dumps(told), *words]
        around = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
        around.setdefault("OMP_NUM_THREADS", "1")
        begun, output = time.perf_counter(), Path(here) / "output.txt"
        with output.open("w", encoding="utf-8") as file:
            try:
                code: int | str = subprocess.run(
                    command, cwd=ROOT, env=around, stdout=file, stderr=file, timeout=time_limit
                ).returncode
            except subprocess.TimeoutExpired:
                code = f"more than {time_limit:.0f} s"
        seconds = round(time.perf_counter() - begun, 1)
        text = output.read_text(encoding="utf-8", errors="replace")
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(text, encoding="utf-8")
        row = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}
        if code != 0:
            row["reason"] = f"exit code {code}: {_last_words(text)}"
        return {**row, "seconds": seconds}


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    errors = ERROR.findall(text)
    return (errors[-1:] or lines[-1:] or ["no message"])[0][:LONGEST_REASON]


def checkout_for_one(checkout: str | Path, folder: Path) -> Path:
    """A folder of links to a checkout, in which one process may write its caches."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in Path(checkout).absolute().iterdir():
        if not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    return folder


def build_nerfacc() -> float:
    """Compile its kernels once, before many processes would; the seconds that it took."""
    begun = time.perf_counter()
    code = "from threestudio_eeg.compat import nerfacc; r = nerfacc.reason_build('cuda'); "
    code += "r and nerfacc.apply_build('cuda'); import nerfacc.cuda._backend"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        print(f"nerfacc does not compile: {done.stderr[-600:]}", flush=True)
    return time.perf_counter() - begun


class Clock:
    """When each training step ended, by a callback of whichever trainer the host makes."""

    def __init__(
        self,
        device: str,
        *,
        steps: int | None = None,
        processor_time: bool = False,
        lock: Path | None = None,
    ) -> None:
        self.device, self.steps, self.lock = device, steps, lock
        self.now = time.process_time if processor_time else time.perf_counter
        self.times: list[float] = []
        self._held: Any = None

    @contextmanager
    def running(self, host: str) -> Iterator[None]:
        package = "pytorch_lightning" if host == "upstream" else "lightning.pytorch"
        lightning = importlib.import_module(package)
        make, clock = lightning.Trainer.__init__, self

        class Ticks(lightning.Callback):  # type: ignore[misc, name-defined]
            def on_train_batch_end(self, *_: Any, **__: Any) -> None:
                clock.tick()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                clock.end_turn()

        @functools.wraps(make)
        def with_ticks(trainer: Any, *args: Any, **kwargs: Any) -> None:
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), Ticks()]
            make(trainer, *args, **kwargs)

        with mock.patch.object(lightning.Trainer, "__init__", with_ticks):
            yield

    def take_turn(self) -> None:
        """Wait until no other training with the same lock runs."""
        if self.lock is not None:
            self._held = self.lock.open("w")
            fcntl.flock(self._held, fcntl.LOCK_EX)

    def end_turn(self) -> None:
        """Let the next one begin."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def tick(self) -> None:
        """A step ended."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.times.append(self.now())
        if len(self.times) == FREE_STEPS:
            self.take_turn()
            self.times[-1] = self.now()
        if len(self.times) == self.steps:
            self.end_turn()

    def steps_per_s(self) -> float | None:
        times = self.times[max(int(WARM_UP * len(self.times)), FREE_STEPS - 1) :]
        if len(times) < 2:
            return None
        return round((len(times) - 1) / (times[-1] - times[0]), 3)


def peak_gb(device: str) -> float:
    """The most memory that tensors took on the GPU, or the process on a CPU."""
    if device == "cuda":
        import torch

        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def leave_films_out() -> None:
    """Where PyAV is missing, a film is no reason to fail; the pictures are written all the same."""
    if importlib.util.find_spec("av") is not None:
        return
    from threestudio_eeg.builtin import saving

    saving.save_film = lambda path, frames, fps=30: Path(path)


def main() -> None:
    told, words = json.loads(sys.argv[1]), sys.argv[2:]
    leave_films_out()
    from threestudio_eeg.cli import app

    lock = None if told["lock"] is None else Path(told["lock"])
    clock = Clock(
        told["device"], steps=told["steps"], processor_time=told["processor_time"], lock=lock
    )
    host = words[words.index("--host") + 1] if "--host" in words else "builtin"
    code: Any = 0
    with clock.running(host):
        try:
            app(words)
        except SystemExit as end:
            code = end.code
    steps = {"steps": len(clock.times), "steps_per_s": clock.steps_per_s()} if clock.times else {}
    row = {**steps, "peak_gb": peak_gb(told["device"])}
    Path(told["result"]).write_text(json.dumps(row), encoding="utf-8")
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
