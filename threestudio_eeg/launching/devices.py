"""Which GPU a run sees, decided before anything looks.

The remedies of :mod:`threestudio_eeg.compat` import packages that count the devices, so what
``launch.py`` does with its ``--gpu`` would come too late.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from eeg_encoder.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
NONE_VISIBLE = "-1"
"""Not the empty text, which ``launch.py`` takes for "not set"."""
STARTED_TOGETHER = ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS")


@contextmanager
def visible_devices(device: str, gpu: str | None) -> Iterator[str]:
    """Show a run its GPU, and give ``"cpu"`` or ``"cuda"`` for ``"auto"``.

    Parameters
    ----------
    device
        ``auto``, ``cpu`` or ``cuda``.
    gpu
        Index of the GPU, as threestudio's ``--gpu``; like there, ``CUDA_VISIBLE_DEVICES`` wins.

    Raises
    ------
    InputError
        For another device, for CUDA where there is none, and for several GPUs in one process.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError("command line", "--device", device, "cpu, cuda or auto")
    before = {name: os.environ.get(name) for name in (VISIBLE, "CUDA_DEVICE_ORDER")}
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if device == "cpu":
        os.environ[VISIBLE] = NONE_VISIBLE
    elif not before[VISIBLE] and gpu is not None:
        os.environ[VISIBLE] = gpu
    try:
        yield "cpu" if device == "cpu" else _cuda_or_cpu(device)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_one_gpu() -> None:
    """Refuse several GPUs in one process.

    Lightning would start the other processes by itself, with ``launch.py`` and without the
    remedies.

    Raises
    ------
    InputError
        It says how to start them together.
    """
    gpus = os.environ.get(VISIBLE, "").split(",")
    if len(gpus) > 1 and not any(name in os.environ for name in STARTED_TOGETHER):
        several = f"torchrun --nproc-per-node {len(gpus)} -m threestudio_eeg.cli launch ..."
        found = f"{len(gpus)} GPUs ({','.join(gpus)})"
        raise InputError("command line", "--gpu", found, f"one, or {several}")


def _cuda_or_cpu(device: str) -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        build = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        raise InputError("command line", "--device", f"cuda, but no CUDA device{build}", "cpu")
    return "cpu"
