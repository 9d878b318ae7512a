"""Work on tensors recorded once and replayed: CUDA graphs, and a stand-in that runs it again.

A recording reads its inputs from buffers of its own and leaves its outputs in others, so a replay
costs one launch however many kernels the work has. The work must be a function of its inputs and
of weights that change in place only, and must not wait for the device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from .tensors import signature, tensors_of, with_tensors

Work = Callable[[Any], dict[str, Tensor]]
"""From a dataclass of tensors to tensors by name, without a graph."""

N_WARM_UP = 3
N_RECORDINGS = 4


class Recording(Protocol):
    """Work that was recorded for inputs of certain shapes."""

    def replay(self, inputs: Any) -> dict[str, Tensor]:
        """Return the outputs for these inputs; the next replay overwrites them."""


class Rerun:
    """A recording that runs its work again: what a graph does, where there are no graphs."""

    def __init__(self, work: Work, inputs: Any) -> None:
        self._work = work
        self._inputs = _buffers(inputs)
        self._outputs = {name: value.clone() for name, value in work(self._inputs).items()}

    def replay(self, inputs: Any) -> dict[str, Tensor]:
        """Return the outputs for these inputs; the next replay overwrites them."""
        _fill(self._inputs, inputs)
        for name, value in self._work(self._inputs).items():
            self._outputs[name].copy_(value)
        return self._outputs


class Graph:
    """A recording as a CUDA graph.

    Parameters
    ----------
    work
        Run a few times on a side stream first, where kernels are chosen, tuned and compiled.
    inputs
        Of the shapes to come.
    pool
        Memory shared with other graphs that never run at the same time.
    """

    def __init__(self, work: Work, inputs: Any, pool: Any) -> None:
        self._inputs = _buffers(inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), _convolutions_tried_out():
            for _ in range(N_WARM_UP):
                work(self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with (
            _convolutions_tried_out(),
            torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"),
        ):
            self._outputs = work(self._inputs)

    def replay(self, inputs: Any) -> dict[str, Tensor]:
        """Return the outputs for these inputs; the next replay overwrites them."""
        _fill(self._inputs, inputs)
        self._graph.replay()
        return self._outputs


class Recordings:
    """Recordings of one piece of work by the shapes of its inputs; the oldest go first.

    Parameters
    ----------
    work
        What is recorded.
    device
        Graphs on CUDA, :class:`Rerun` elsewhere.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work, self._device = work, device
        self._known: OrderedDict[Hashable, Recording] = OrderedDict()
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._known)

    def run(self, inputs: Any, key: Hashable = None) -> dict[str, Tensor]:
        """Replay for these inputs, recording first where shapes, numbers or ``key`` are new."""
        full_key = (signature(inputs), key)
        if full_key not in self._known:
            self._make_room()
            self._known[full_key] = self._record(inputs)
        self._known.move_to_end(full_key)
        return self._known[full_key].replay(inputs)

    def _make_room(self) -> None:
        while len(self._known) >= N_RECORDINGS:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._known.popitem(last=False)

    def _record(self, inputs: Any) -> Recording:
        if self._device.type != "cuda":
            return Rerun(self._work, inputs)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        with torch.cuda.device(self._device):
            return Graph(self._work, inputs, self._pool)


@contextmanager
def _convolutions_tried_out() -> Iterator[None]:
    """Let cuDNN take the fastest algorithm it finds; what it finds is kept for the recording."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _buffers(inputs: Any) -> Any:
    copies = {path: value.detach().clone() for path, value in tensors_of(inputs).items()}
    return with_tensors(inputs, copies)


def _fill(buffers: Any, inputs: Any) -> None:
    new = tensors_of(inputs)
    for path, buffer in tensors_of(buffers).items():
        buffer.copy_(new[path].detach())
