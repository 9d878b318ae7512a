"""tiny-cuda-nn, which has to be compiled and runs on CUDA only."""

from __future__ import annotations

import importlib

from . import patching
from .absent import why_absent
from .remedy import Remedy

PACKAGE = "tinycudann"
OURS = "threestudio_eeg.neural_fields.tinycudann"


def reason(device: str) -> str | None:
    if device == "cpu":
        return "tinycudann has no CPU kernels"
    return why_absent(PACKAGE)


def apply(device: str) -> None:
    patching.add_module(PACKAGE, importlib.import_module(OURS))


REMEDY = Remedy(
    name=PACKAGE,
    stands_in_for="Encodings and networks of tiny-cuda-nn: the same classes of this package, with "
    "the same parameter layout.",
    reason=reason,
    apply=apply,
    hint="needs nvcc: pip install --no-build-isolation "
    "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch",
)
