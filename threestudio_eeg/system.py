"""What this extension adds to a system: a record of the EEG, and the guidance's own state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eeg_encoder.files import write_json

from . import host
from .host import find, register
from .provenance import environment

if TYPE_CHECKING:
    from .builtin.systems import BaseLift3DSystem, ProlificDreamer
else:
    BaseLift3DSystem, ProlificDreamer = object, find("prolificdreamer-system")

RECORD = "conditioning.json"
ENVIRONMENT = "provenance.json"
GUIDANCE_STATE = "eeg_guidance"


@register("eeg-system")
class EEGSystem(BaseLift3DSystem):
    """Mixin for any system of either host: ``system_type: dreamfusion-system:eeg-system``.

    - The trial folder says which conditioning file (by SHA-256), trial, encoder and base model the
      object comes from (``conditioning.json``; nothing for text prompts), and with which versions
      and commit of this package it was made (``provenance.json``): threestudio's own snapshot of
      the code leaves extensions out.
    - A guidance with an optimiser of its own (``guidance.lora_optimizer``) is saved in the
      checkpoints and restored, also where the system makes it only when training starts.
    - On threestudio, a geometry's ``shape_init`` is carried out at the start of training; of its
      own systems only fantasia3d and textmesh do this. (The embedded host's systems all do.)
    """

    _guidance_state: dict[str, Any] | None = None

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._restore_guidance()
        self._initialize_shape()
        if self.trainer.is_global_zero:
            self._write_records()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        own = _own_optimizer(self)
        if own is not None:
            checkpoint[GUIDANCE_STATE] = own.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._guidance_state = checkpoint.get(GUIDANCE_STATE)

    def _restore_guidance(self) -> None:
        own, state = _own_optimizer(self), self._guidance_state
        self._guidance_state = None
        if own is None:
            return
        own.kept = True
        if state is not None:
            own.load_state_dict(state)

    def _initialize_shape(self) -> None:
        cfg = self.cfg
        begun = self._resumed or cfg.weights is not None or cfg.geometry_convert_from is not None
        asked = getattr(self.geometry.cfg, "shape_init", None) is not None
        if host.name == "upstream" and asked and not begun:
            self.geometry.initialize_shape()

    def _write_records(self) -> None:
        folder = Path(self.get_save_path(RECORD)).parent.parent
        where = {"host": host.name, "step": self.true_global_step}
        record = getattr(self.prompt_processor, "provenance", None)
        if record:
            write_json(folder / RECORD, {**where, **record})
        if not (folder / ENVIRONMENT).exists() or host.name == "upstream":
            write_json(folder / ENVIRONMENT, {**where, **environment(self.device)})


@register("eeg-prolificdreamer-system")
class EEGProlificDreamer(EEGSystem, ProlificDreamer):
    """The active host's ``prolificdreamer-system`` with what :class:`EEGSystem` adds."""


def _own_optimizer(system: Any) -> Any:
    return getattr(getattr(system, "guidance", None), "own_optimizer", None)
