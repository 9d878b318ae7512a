"""Register everything this package adds with the active host, by being imported.

On an installed threestudio, a folder ``custom/threestudio-eeg`` with an ``__init__.py`` of
``import threestudio_eeg.plugin`` is enough.
"""

from __future__ import annotations

import importlib

from . import host

PARTS = ("prompt_processor", "guidance", "system")
UPSTREAM_PARTS = ("upstream_exporter",)
"""Of which the embedded host has its own."""
REGISTERED = (
    "eeg-prompt-processor",
    "eeg-sds-guidance",
    "eeg-vsd-guidance",
    "eeg-prolificdreamer-system",
    "eeg-system",
    "occlusion-mesh-exporter",
)


def register_all() -> tuple[str, ...]:
    """Import the modules that register; a second call changes nothing. Returns the names."""
    for part in PARTS + (UPSTREAM_PARTS if host.name == "upstream" else ()):
        importlib.import_module(f"threestudio_eeg.{part}")
    return REGISTERED


register_all()
