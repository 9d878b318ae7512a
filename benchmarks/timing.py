"""Timing for the benchmarks: medians by CUDA events, and the device's memory bandwidth."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 26}


def median_ms(
    step: Callable[[], object], device: str, repeats: int = 20, warm_up: int = 3
) -> float:
    """Median time of ``step`` in milliseconds, by events on a GPU, else by the wall clock."""
    for _ in range(warm_up):
        step()
    if not device.startswith("cuda"):
        return statistics.median(_wall_ms(step) for _ in range(repeats))
    marks = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step()
        end.record()
        marks.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks)


def _wall_ms(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return (time.perf_counter() - begin) * 1e3


class Laps:
    """Times of the parts of a step: by events on a GPU, which waits for nothing, else by the clock.

    Call :meth:`start`, then :meth:`mark` at the end of each part.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        self._steps: list[list[tuple[str, Any]]] = []

    def start(self) -> None:
        """Begin a step."""
        self._steps.append([("", self._now())])

    def mark(self, part: str) -> None:
        """End a part of the step."""
        self._steps[-1].append((part, self._now()))

    def clear(self) -> None:
        """Forget the steps so far."""
        self._steps.clear()

    def times(self) -> dict[str, list[float]]:
        """Milliseconds of each part, and of the ``whole`` step, step by step."""
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, list[float]] = {}
        for marks in self._steps:
            for (_, begin), (part, end) in zip(marks, marks[1:], strict=False):
                found.setdefault(part, []).append(self._between(begin, end))
            found.setdefault("whole", []).append(self._between(marks[0][1], marks[-1][1]))
        return found

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        if self._on_gpu:
            return float(begin.elapsed_time(end))
        return float(end - begin) * 1e3


def reset_peak(device: str) -> None:
    """Begin to look for the peak of a GPU's memory."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: str) -> float:
    """Most memory of tensors since then, in 10**9 bytes; NaN on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else math.nan


def bandwidth(device: str) -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.empty(COPY_BYTES[device.split(":")[0]], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_ms(lambda: target.copy_(source), device, 10) / 1e3
    return 2 * source.numel() / seconds


def machine(device: str) -> dict[str, str]:
    """What the figures were measured on."""
    on_gpu = device.startswith("cuda")
    name = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}
