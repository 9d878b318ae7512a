"""What a run was made with: versions, device, commit of this package."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("threestudio-eeg", "torch", "lightning", "diffusers", "transformers", "peft", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Describe this process for a trial's ``provenance.json``."""
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "commit": commit(),
        "device": cuda or platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def version(package: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit of the code that runs, with ``-dirty`` when files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        subprocess.run(tracked, check=True, capture_output=True, timeout=10)
        answer = subprocess.run(describe, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
