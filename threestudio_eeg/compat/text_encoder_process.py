"""The child process in which threestudio embeds prompts."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from . import patching
from .remedy import Remedy, always

BASE = "threestudio.models.prompt_processors.base"


def apply(device: str) -> None:
    processor = importlib.import_module(BASE).PromptProcessor
    wrapped = _in_this_process(processor.prepare_text_embeddings)
    patching.set_attribute(processor, "prepare_text_embeddings", wrapped)


def _in_this_process(prepare: Any) -> Any:
    @functools.wraps(prepare)
    def wrapped(self: Any) -> Any:
        self.cfg.spawn = False
        return prepare(self)

    return wrapped


REMEDY = Remedy(
    name="prompts-in-process",
    stands_in_for="The child process that embeds prompts (prompt_processor.spawn): they are "
    "embedded in this one.",
    reason=always("a child process would start without these remedies"),
    apply=apply,
    hint="embeddings are kept in .threestudio_cache, so this happens once a prompt",
    after_import=True,
)
