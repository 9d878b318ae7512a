"""ProlificDreamer's system with a record of the EEG it was run on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eeg_encoder.files import write_json

from . import host
from .host import find, register

if TYPE_CHECKING:
    from .builtin.systems import ProlificDreamer
else:
    ProlificDreamer = find("prolificdreamer-system")

RECORD = "conditioning.json"


@register("eeg-prolificdreamer-system")
class EEGProlificDreamer(ProlificDreamer):
    """The active host's ``prolificdreamer-system``, writing ``conditioning.json`` when it fits.

    The trial folder then says which conditioning file (by SHA-256), trial, encoder and base model
    the object comes from. Nothing is written for text prompts.
    """

    def on_fit_start(self) -> None:
        super().on_fit_start()
        record = getattr(self.prompt_utils, "provenance", None)
        if record and self.trainer.is_global_zero:
            write_json(self._trial_folder() / RECORD, self._record(record))

    def _record(self, provenance: dict[str, Any]) -> dict[str, Any]:
        return {"host": host.name, "step": self.true_global_step, **provenance}

    def _trial_folder(self) -> Path:
        return Path(self.get_save_path(RECORD)).parent.parent
