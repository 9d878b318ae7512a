"""Packages that upstream threestudio cannot do without, and that only need to be installed."""

from __future__ import annotations

import importlib.util

REQUIRED = {
    "cv2": "opencv-python-headless",
    "einops": "einops",
    "jaxtyping": "jaxtyping",
    "nerfacc": "nerfacc",
    "pytorch_lightning": "pytorch-lightning",
    "requests": "requests",
    "torchmetrics": "torchmetrics",
    "typeguard": "typeguard",
}
"""Import name to the name to install; those that threestudio-eeg needs itself are not listed."""

HINT = 'pip install "threestudio-eeg[upstream]"'


def missing_requirements() -> list[str]:
    """Names, as pip knows them, of required packages that are not installed."""
    return [package for module, package in REQUIRED.items() if not _installed(module)]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a module without a spec is a module
        return True
