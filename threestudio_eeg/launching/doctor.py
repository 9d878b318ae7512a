"""What this Python can run, on which host, by which remedies, and what it lacks."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..provenance import version
from .checkout import Threestudio, warning_of
from .choice import Choice, choose_host
from .devices import visible_devices
from .linking import is_linked

REQUIREMENT, UPSTREAM, OPTIONAL = "requirement", "upstream", "optional"

PACKAGES = {
    "threestudio-eeg": (REQUIREMENT, "pip install threestudio-eeg"),
    "torch": (REQUIREMENT, "https://pytorch.org/get-started"),
    "diffusers": (REQUIREMENT, "pip install diffusers"),
    "transformers": (REQUIREMENT, "pip install transformers"),
    "peft": (REQUIREMENT, "pip install peft"),
    "lightning": (REQUIREMENT, "pip install lightning"),
    "pytorch-lightning": (UPSTREAM, "pip install pytorch-lightning"),
    "nerfacc": (UPSTREAM, "pip install nerfacc"),
    "tinycudann": (OPTIONAL, "https://github.com/NVlabs/tiny-cuda-nn (needs nvcc)"),
    "nvdiffrast": (OPTIONAL, "https://github.com/NVlabs/nvdiffrast (needs nvcc)"),
    "gsplat": (OPTIONAL, "pip install gsplat"),
}
"""Distribution: who needs it, and how to get it. The rest of upstream's needs compat knows."""


@dataclass(frozen=True)
class Package:
    name: str
    version: str | None
    needed_by: str
    get: str


@dataclass(frozen=True)
class Needed:
    """A remedy that would be active."""

    name: str
    why: str
    stands_in_for: str
    hint: str


@dataclass(frozen=True)
class Lack:
    """Something missing; ``needed`` when the chosen host does not run without it."""

    name: str
    needed: bool
    get: str


@dataclass(frozen=True)
class Diagnosis:
    """All that ``threestudio-eeg doctor`` says."""

    device: str
    machine: dict[str, str | None]
    packages: list[Package]
    host: str
    why: str
    threestudio: dict[str, Any] | None
    remedies: list[Needed]
    missing: list[Lack]

    @property
    def healthy(self) -> bool:
        return not any(lack.needed for lack in self.missing)

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "healthy": self.healthy}

    def lines(self) -> Iterator[str]:
        """Lines to print."""
        yield from _columns((name, value or "none") for name, value in self.machine.items())
        yield ""
        yield from _columns((one.name, one.version or "not installed") for one in self.packages)
        yield ""
        yield f"host: {self.host} ({self.why})"
        for name, value in (self.threestudio or {}).items():
            yield f"  {name}: {value}"
        if self.remedies:
            yield f"remedies on {self.device}:"
        for remedy in self.remedies:
            yield f"  {remedy.name}: {remedy.stands_in_for}"
            yield f"    because: {remedy.why}; to do without: {remedy.hint}"
        for lack in self.missing:
            need = "missing" if lack.needed else "not there, and not needed"
            yield f"{need}: {lack.name}; get it: {lack.get}"


def examine(
    path: str | Path | None = None, device: str = "auto", host: str | None = None
) -> Diagnosis:
    """Look at this Python, and at a threestudio where there is one.

    Nothing is changed, and threestudio is not imported; the packages it needs are, to see whether
    they work.

    Parameters
    ----------
    path, host
        As :func:`~threestudio_eeg.launching.choice.choose_host` takes them.
    device
        ``auto``, ``cpu`` or ``cuda``: what a run would be on.

    Raises
    ------
    InputError
        For a path that is no threestudio, or CUDA where there is none.
    """
    choice = choose_host(host, path)
    with visible_devices(device, None) as chosen:
        packages = [Package(name, version(name), *about) for name, about in PACKAGES.items()]
        upstream = choice.name == "upstream"
        return Diagnosis(
            device=chosen,
            machine=_machine(chosen),
            packages=packages,
            host=choice.name,
            why=choice.why,
            threestudio=_describe(choice.threestudio) if choice.threestudio else None,
            remedies=_remedies(chosen) if upstream else [],
            missing=_missing(packages, choice),
        )


def _machine(device: str) -> dict[str, str | None]:
    import torch

    gpu = torch.cuda.get_device_name(0) if device == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "CUDA of torch": torch.version.cuda,
        "GPU": gpu,
        "nvcc": shutil.which("nvcc") or _nvcc_of(os.environ.get("CUDA_HOME")),
    }


def _nvcc_of(home: str | None) -> str | None:
    path = Path(home or "", "bin", "nvcc")
    return str(path) if home and path.is_file() else None


def _describe(threestudio: Threestudio) -> dict[str, Any]:
    custom = threestudio.extensions
    entries = sorted(custom.iterdir()) if custom.is_dir() else []
    extensions = [path.name for path in entries if path.is_dir() or path.suffix == ".py"]
    return {
        "version": threestudio.version,
        "at": str(threestudio.root),
        "launch.py": "yes" if threestudio.script else "no: its part is done by threestudio-eeg",
        "linked": "yes" if is_linked(threestudio) else "no (only python launch.py needs it)",
        "extensions": ", ".join(extensions) or "none",
        **({"warning": warning_of(threestudio)} if not threestudio.tested else {}),
    }


def _remedies(device: str) -> list[Needed]:
    from ..compat import REMEDIES

    needed = []
    for remedy in REMEDIES:
        try:
            why = remedy.reason(device)
        except ImportError as error:
            why = f"not known yet ({error})"
        if why is not None:
            needed.append(Needed(remedy.name, why, remedy.stands_in_for, remedy.hint))
    return needed


def _missing(packages: list[Package], choice: Choice) -> list[Lack]:
    upstream = choice.name == "upstream"
    lacks = []
    for one in packages:
        needed = one.needed_by == REQUIREMENT or (upstream and one.needed_by == UPSTREAM)
        if one.version is None and (needed or upstream or one.needed_by == OPTIONAL):
            lacks.append(Lack(one.name, needed, one.get))
    if upstream:
        from ..compat import missing_requirements

        named = {lack.name for lack in lacks}
        others = [name for name in missing_requirements() if name not in named]
        lacks += [Lack(name, True, f"pip install {name}") for name in others]
    return lacks


def _columns(rows: Any) -> Iterator[str]:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"{name:<{width}}  {value}"
