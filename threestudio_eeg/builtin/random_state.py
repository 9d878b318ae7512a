"""Random generators that survive a checkpoint: a resumed run equals an uninterrupted one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, words, gauss_next = random.getstate()
    return {
        "python": [version, list(words), gauss_next],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the generators into a state that :func:`random_state` returned.

    CUDA states are restored when there are as many devices as when they were taken.
    """
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        states = [item.cpu() for item in state["cuda"]]
        if len(states) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states)


class StepLoader:
    """A training loader of known length that draws a batch only when a step asks for it.

    Lightning fetches one batch ahead from loaders without a length, and numbers drawn before the
    checkpoint are lost to the resumed run.

    Parameters
    ----------
    loader
        An iterable without end.
    length
        Steps that Lightning is to count as one epoch.
    system
        Tells the data set where training stands before iteration begins, and restores a
        checkpoint's generators after the loader's own set-up has drawn from them.
    """

    def __init__(self, loader: Any, length: int, system: Any) -> None:
        self.loader = loader
        self.length = length
        self.system = system
        self.dataset = getattr(loader, "dataset", None)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        self.system.update_data(self.dataset)
        batches = iter(self.loader)
        self.system.restore_pending_random_state()
        yield from batches

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own: the generators' state is in the checkpoint already."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


def own_generator(loader: Any) -> Any:
    """Let an evaluation loader draw its worker seed from a generator of its own."""
    if isinstance(loader, torch.utils.data.DataLoader) and loader.generator is None:
        loader.generator = torch.Generator()
    return loader
