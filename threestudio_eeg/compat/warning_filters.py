"""Warnings about threestudio's own code, which its users can do nothing about."""

from __future__ import annotations

from . import patching
from .remedy import Remedy, always

FROM_THREESTUDIO = r"(.*[./\\])?threestudio[./\\]"
FROM_DIFFUSERS = r"diffusers\."
FILTERS: tuple[tuple[str, type[Warning]], ...] = (
    (r"`?torch\.cuda\.amp\.(autocast|custom_fwd|custom_bwd)", FutureWarning),
    (r"register_new_resolver\(\) is deprecated", UserWarning),
    (r"Using torch\.cross without specifying the dim", UserWarning),
    (r"The 'warn' (method|function) is deprecated", DeprecationWarning),
    (r"(\"\\d\" is an )?invalid escape sequence", SyntaxWarning),
)


def apply(device: str) -> None:
    for message, category in FILTERS:
        patching.ignore_warning(message, category, FROM_THREESTUDIO)
    # diffusers gives its own place for this one, wherever the argument comes from.
    patching.ignore_warning(r"`torch_dtype` is deprecated", FutureWarning, FROM_DIFFUSERS)


REMEDY = Remedy(
    name="warning-filters",
    stands_in_for="Some sixty lines of deprecation warnings about threestudio's own source: "
    "nothing. Other warnings stay.",
    reason=always("threestudio uses names that torch and Python are about to drop"),
    apply=apply,
    hint="they are harmless",
)
