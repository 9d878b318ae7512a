"""``model.train()`` at the start of a fit, which Lightning 2.2 stopped calling."""

from __future__ import annotations

import functools
from typing import Any

from . import patching
from .remedy import Remedy


def reason(device: str) -> str | None:
    import pytorch_lightning

    major, minor = pytorch_lightning.__version__.split(".")[:2]
    if (int(major), int(minor)) < (2, 2):
        return None
    return "Lightning 2.2 and later start a fit without model.train()"


def apply(device: str) -> None:
    from pytorch_lightning import Trainer

    patching.set_attribute(Trainer, "fit", _in_training_mode(Trainer.fit))


def _in_training_mode(fit: Any) -> Any:
    @functools.wraps(fit)
    def wrapped(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        model.train()
        return fit(self, model, *args, **kwargs)

    return wrapped


REMEDY = Remedy(
    name="training-mode",
    stands_in_for="Lightning's call of train() on the system, in which threestudio's renderers "
    "turn on their random sampling.",
    reason=reason,
    apply=apply,
    hint="lightning<2.2",
)
