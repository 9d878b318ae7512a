"""Throughput of the first stage on several devices against one, the batch of each the same.

    python benchmarks/encoder_ddp.py --device cuda --devices 1 2 --batch 10 128 --out ddp.json
    python benchmarks/encoder_ddp.py --preset small --devices 1 2 --batch 4 --steps 5

Each number of devices is a process of its own that runs the stage as ``eeg-encoder pretrain`` does:
Lightning, DistributedDataParallel, the published loss, on random signals of the published size.
Printed: signals per second over the steps after the first epoch, and the ratio to one device.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from timing import machine  # noqa: E402

from eeg_encoder import models  # noqa: E402
from eeg_encoder.files import write_json  # noqa: E402
from eeg_encoder.stages.batches import BankLoader, Batch, TrialBank  # noqa: E402
from eeg_encoder.stages.pretrain import PretrainConfig, Pretraining  # noqa: E402
from eeg_encoder.stages.running import Running, fit, is_first_process  # noqa: E402


class Timed(Pretraining):
    """The stage, with a clock that starts after the first epoch."""

    taken = 0
    first = last = 0.0

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Note when each step's work is done, at the first epoch's end and at the last step."""
        in_epoch = int(self.trainer.num_training_batches)
        if self.current_epoch == 0:
            if batch_idx + 1 == in_epoch:
                self._note("first")
            return
        self.taken += 1
        if self.taken == self.steps - in_epoch:
            self._note("last")

    def _note(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        setattr(self, name, time.perf_counter())


def random_bank(trials: int, channels: int, samples: int, device: str) -> TrialBank:
    """Trials of a picture each."""
    rows = torch.arange(trials, device=device)
    signals = torch.randn(trials, channels, samples, device=device)
    nobody = torch.zeros_like(rows)
    return TrialBank(signals, rows[:, None], nobody, rows, [str(i) for i in range(trials)])


def measure(arguments: argparse.Namespace, devices: int, batch: int) -> dict[str, Any]:
    """One number of devices, in this process and in those that Lightning starts."""
    torch.manual_seed(0)
    running = Running(
        device=arguments.device, precision=arguments.precision, progress=False, devices=devices,
        clip=0.8,
    )  # fmt: skip
    running.take_device()
    samples = 512 if arguments.preset == "faithful" else 510
    network: Any = models.build(
        "masked_autoencoder", preset=arguments.preset, channels=128, samples=samples, embedding=768
    ).to(arguments.device)
    config = PretrainConfig(batch_size=batch, mse_weight=0.0, shift=0, graphs=arguments.graphs)
    in_epoch = max(1, arguments.steps // 4)
    bank = random_bank(batch * devices * in_epoch, 128, samples, arguments.device)
    order = torch.Generator(bank.signals.device)
    loader = BankLoader(bank, batch, order, devices)
    assert len(loader) == in_epoch
    stage = Timed(network, config, 5 * in_epoch, 0, order)
    fit(stage, "pretrain", 5, running, loader)
    seconds = (stage.last - stage.first) / stage.taken
    on_gpu = arguments.device == "cuda"
    return {
        "devices": devices,
        "batch": batch,
        "steps": stage.taken,
        "step_ms": seconds * 1e3,
        "signals_per_second": batch * devices / seconds,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }


def inside(arguments: argparse.Namespace) -> None:
    """Every batch size with one number of devices; the first process writes."""
    rows = []
    for batch in arguments.batch:
        rows.append(measure(arguments, arguments.inside, batch))
        if is_first_process():
            arguments.out.write_text(json.dumps(rows))


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[10], help="of each device")
    parser.add_argument("--preset", default="faithful")
    parser.add_argument("--precision", default=None, help="Lightning's; bf16-mixed on a GPU")
    parser.add_argument("--steps", type=int, default=60, help="that are timed, about")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of each process")
    parser.add_argument("--graphs", action="store_true", help="one device: record the passes")
    parser.add_argument("--inside", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.precision is None:
        arguments.precision = "bf16-mixed" if arguments.device == "cuda" else "32-true"
    if arguments.inside:
        return inside(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for devices in arguments.devices:
            started = time.monotonic()
            found = Path(folder) / f"{devices}.json"
            words = [
                sys.executable, __file__, "--inside", devices, "--out", found,
                "--device", arguments.device, "--preset", arguments.preset,
                "--precision", arguments.precision, "--steps", arguments.steps,
                "--batch", *arguments.batch, *(["--graphs"] if arguments.graphs else []),
            ]  # fmt: skip
            child = subprocess.Popen(
                [str(word) for word in words], start_new_session=True,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )  # fmt: skip
            try:
                child.wait(arguments.limit)
            except subprocess.TimeoutExpired:
                print(f"{devices} devices: more than {arguments.limit:.0f} s", flush=True)
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            if found.is_file():
                rows += json.loads(found.read_text())
            print(f"{devices} devices: {time.monotonic() - started:.0f} s", flush=True)
    alone = {row["batch"]: row["signals_per_second"] for row in rows if row["devices"] == 1}
    print(f"{'devices':>7s} {'batch':>6s} {'step ms':>9s} {'signals/s':>10s} {'ratio':>6s}")
    for row in rows:
        row["ratio"] = row["signals_per_second"] / alone.get(row["batch"], float("nan"))
        print(f"{row['devices']:7d} {row['batch']:6d} {row['step_ms']:9.2f} "
              f"{row['signals_per_second']:10.1f} {row['ratio']:6.2f}")  # fmt: skip
    if arguments.out is not None:
        settings = {k: str(v) for k, v in vars(arguments).items() if k not in ("out", "inside")}
        write_json(arguments.out, {"settings": settings, "rows": rows, **machine(arguments.device)})
    return None


if __name__ == "__main__":
    main()
