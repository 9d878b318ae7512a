"""Where Triton's kernels are tested: on a GPU, else in Triton's interpreter in another process.

The interpreter is chosen when Triton is imported, so that a test cannot switch it on for itself.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_TRITON = importlib.util.find_spec("triton") is not None

runs_kernels = pytest.mark.skipif(
    not (HAS_TRITON and (INTERPRETED or torch.cuda.is_available())),
    reason="needs Triton, and a GPU or TRITON_INTERPRET=1",
)
DEVICE = "cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda"


def run_in_interpreter(file: str) -> None:
    """Run a file's tests again with ``TRITON_INTERPRET=1``; skip where that is not needed."""
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")
    if INTERPRETED or torch.cuda.is_available():
        pytest.skip("the kernels are tested in this process")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout or "." in done.stdout
