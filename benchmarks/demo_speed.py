"""Two versions of this project side by side: what a step of the demo costs on a CPU.

Each checkout's own code trains its own configs/phantom/text.yaml (the demo's experiment; a caption
takes the EEG's place, which no step notices) or, with --conditioning, phantom/eeg.yaml, with
phantom/one-view.yaml over it where there is one, as its demo has it. The two take turns of --block
steps, so that both see the same load of the machine. Prints processor seconds and wall seconds a
step, and ratios; on a machine with other work only the processor's ratio means something.

    git archive OLD | tar x -C /tmp/old
    python benchmarks/demo_speed.py /tmp/old . --steps 400 --block 20 --out demo_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from eeg_encoder.files import write_json  # noqa: E402

CLOCKS = ("cpu", "wall")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def main(arguments: list[str] | None = None) -> int:
    """Compare two checkouts, or be the worker for one."""
    options = parse(arguments)
    if options.worker:
        work(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        teams = [Worker(path, options, Path(folder)) for path in (options.old, options.new)]
        try:
            rounds = take_turns(teams, options)
        finally:
            for worker in teams:
                worker.leave()
    report = summarise(rounds, options.block)
    show(report, options)
    if options.out is not None:
        write_json(options.out, report)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("new", type=Path, nargs="?", default=Path("."), help="checkout")
    parser.add_argument("--steps", type=int, default=400, help="length of the run's schedules")
    parser.add_argument("--until", type=int, help="stop after so many steps; default all")
    parser.add_argument("--block", type=int, default=20, help="steps a turn")
    parser.add_argument("--threads", type=int, default=1, help="torch threads a process")
    parser.add_argument("--conditioning", type=Path, help="an EEG's, instead of a caption")
    parser.add_argument("--override", nargs="*", default=[], help="key=value words for both")
    parser.add_argument("--override-new", nargs="*", default=[], help="for the new one alone")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# The one who asks


class Worker:
    """A process that trains one checkout's demo, a block at a time."""

    def __init__(self, checkout: Path, options: argparse.Namespace, folder: Path) -> None:
        checkout = checkout.resolve()
        is_new = checkout == options.new.resolve()
        words = options.override + (options.override_new if is_new else [])
        command = [sys.executable, str(Path(__file__).resolve()), str(checkout), "--worker"]
        for name in ("steps", "until", "block", "threads", "conditioning"):
            value = getattr(options, name)
            if value is not None:
                command += [f"--{name}", str(value)]
        if words:
            command += ["--override", *words]
        threads = {name: str(options.threads) for name in THREAD_VARIABLES}
        own = {"THREESTUDIO_EEG_HOST": "builtin", "PYTHONPATH": str(checkout)}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **threads, **own},
            cwd=folder,
        )
        self.checkout = checkout

    def block(self) -> dict[str, float] | None:
        """Train a block; its seconds, or None at the end of training."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.checkout}: the worker died")
        found: dict[str, float] | None = json.loads(line)
        return found

    def leave(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def take_turns(teams: list[Worker], options: argparse.Namespace) -> list[list[dict[str, float]]]:
    """Blocks of both in turn, who goes first alternating: seconds of each pair.

    Ctrl-C ends them early.
    """
    from rich.progress import track

    total = (options.until or options.steps) // options.block
    rounds = []
    with suppress(KeyboardInterrupt):
        for turn in track(range(total), description="blocks", transient=True):
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            found = {which: teams[which].block() for which in order}
            if None in found.values():
                break
            rounds.append([dict(found[0] or {}), dict(found[1] or {})])
    return rounds


def summarise(rounds: list[list[dict[str, float]]], block: int) -> dict[str, Any]:
    """Milliseconds a step of old and new, the ratio of their sums and the median ratio."""
    report: dict[str, Any] = {"steps": len(rounds) * block}
    for clock in CLOCKS:
        old, new = ([pair[which][clock] for pair in rounds] for which in (0, 1))
        report[clock] = {
            "old ms": sum(old) / report["steps"] * 1e3,
            "new ms": sum(new) / report["steps"] * 1e3,
            "ratio": sum(old) / sum(new),
            "median ratio": statistics.median(a / b for a, b in zip(old, new, strict=True)),
        }
    report["rounds"] = rounds
    return report


def show(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the figures."""
    print(f"{report['steps']} steps, {options.threads} threads a process")
    for clock in CLOCKS:
        found = report[clock]
        line = f"old {found['old ms']:.1f} ms, new {found['new ms']:.1f} ms a step"
        ratios = f"{found['ratio']:.2f} times faster, median block {found['median ratio']:.2f}"
        print(f"  {clock:4s} {line}: {ratios}")


# The one who trains


def work(options: argparse.Namespace) -> None:
    """Train the checkout's demo; after each block write its seconds to the standard output."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.path[:0] = [str(options.old)]
    import logging
    import warnings

    import lightning.pytorch as pl
    import torch

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    import threestudio_eeg
    from threestudio_eeg.builtin.config import load_config
    from threestudio_eeg.builtin.registry import find

    assert Path(threestudio_eeg.__file__).is_relative_to(options.old)
    config = load_config(*experiment(options), cli_args=words(options))
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = find(config.data_type)(config.data)
    system = find(config.system_type)(config.system)
    system.set_save_dir(Path.cwd() / options.old.name / "save")
    data.setup("fit")
    trainer = pl.Trainer(
        max_steps=options.until or options.steps,
        accelerator="cpu",
        callbacks=[_blocks(pl, options.block, answers)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sys.stdin.readline()
    trainer.fit(system, data.train_dataloader())
    print("null", file=answers, flush=True)


def experiment(options: argparse.Namespace) -> list[Path]:
    """The checkout's files of the demo."""
    name = "text.yaml" if options.conditioning is None else "eeg.yaml"
    folder: Path = options.old / "configs" / "phantom"
    return [file for file in (folder / name, folder / "one-view.yaml") if file.is_file()]


def words(options: argparse.Namespace) -> list[str]:
    """Overrides for the checkout's config."""
    found = [f"trainer.max_steps={options.steps}", *options.override]
    if options.conditioning is not None:
        found.append(f"system.prompt_processor.conditioning={options.conditioning.resolve()}")
    return found


def _blocks(pl: Any, size: int, answers: Any) -> Any:
    """A callback that answers after every ``size`` steps and waits for the next turn."""

    class Blocks(pl.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.begun = _clocks()

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            if trainer.global_step % size:
                return
            seconds = {name: now - self.begun[name] for name, now in _clocks().items()}
            print(json.dumps(seconds), file=answers, flush=True)
            sys.stdin.readline()
            self.begun = _clocks()

    return Blocks()


def _clocks() -> dict[str, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu": used.ru_utime + used.ru_stime, "wall": time.perf_counter()}


if __name__ == "__main__":
    sys.exit(main())
