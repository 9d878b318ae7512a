"""threestudio's places that take a CUDA device for granted, on a CPU."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from . import patching
from .remedy import Remedy, on_cpu_only

HINT = "a CUDA device"


class NoDevice:
    """``torch.cuda.device`` that selects nothing.

    A class, because torch asks whether things are instances of it.
    """

    def __init__(self, device: Any) -> None:
        self.idx = -1

    def __enter__(self) -> None:
        """Select nothing."""

    def __exit__(self, *_: Any) -> None:
        """Go back to nothing."""


def apply_context(device: str) -> None:
    patching.set_attribute(torch.cuda, "device", NoDevice)


CONTEXT = Remedy(
    name="cuda-context",
    stands_in_for="torch.cuda.device, in which threestudio makes its encodings: selects nothing.",
    reason=on_cpu_only("threestudio makes encodings on a CUDA device"),
    apply=apply_context,
    hint=HINT,
)


def get_device() -> torch.device:
    """Where modules of threestudio put their tensors."""
    return torch.device("cpu")


def apply_device(device: str) -> None:
    misc = importlib.import_module("threestudio.utils.misc")
    networks = importlib.import_module("threestudio.models.networks")
    patching.replace_in_modules("threestudio", "get_device", misc.get_device, get_device)
    # Here, and only here, the rank is used as a device.
    patching.set_attribute(networks, "get_rank", get_device)


DEVICE = Remedy(
    name="cuda-device",
    stands_in_for="threestudio's get_device, which is cuda:<rank>: the CPU.",
    reason=on_cpu_only("threestudio's device is always cuda:<rank>"),
    apply=apply_device,
    hint=HINT,
    after_import=True,
)


def apply_accelerator(device: str) -> None:
    from pytorch_lightning import Trainer

    patching.set_attribute(Trainer, "__init__", _on_cpu(Trainer.__init__))


def _on_cpu(init: Any) -> Any:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("accelerator") == "gpu":
            kwargs.update(accelerator="cpu", devices=1)
        init(self, *args, **kwargs)

    return wrapped


ACCELERATOR = Remedy(
    name="cpu-trainer",
    stands_in_for='The Trainer\'s accelerator="gpu", which launch.py asks for: "cpu".',
    reason=on_cpu_only("launch.py asks the Trainer for GPUs"),
    apply=apply_accelerator,
    hint=HINT,
)
