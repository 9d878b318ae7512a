"""Which remedies there are, in the order in which they are applied, and applying them."""

from __future__ import annotations

import sys
from pathlib import Path

from eeg_encoder.errors import InputError

from . import (
    checkpoints,
    colormaps,
    cross_products,
    cuda_absent,
    films,
    igl,
    ipython,
    lora,
    model_ids,
    nerfacc,
    nvdiffrast,
    optional_packages,
    patching,
    pysdf,
    requirements,
    tetrahedra,
    text_encoder_process,
    tinycudann,
    torchvision,
    training_mode,
    warning_filters,
)
from .remedy import DEVICES, Applied, Remedy

REMEDIES: tuple[Remedy, ...] = (
    warning_filters.REMEDY,
    torchvision.REMEDY,
    tinycudann.REMEDY,
    nvdiffrast.REMEDY,
    nvdiffrast.GL_REMEDY,
    igl.REMEDY,
    *optional_packages.REMEDIES,
    ipython.REMEDY,
    pysdf.REMEDY,
    lora.REMEDY,
    nerfacc.REMEDY,
    nerfacc.BUILD_REMEDY,
    cuda_absent.CONTEXT,
    cuda_absent.ACCELERATOR,
    training_mode.REMEDY,
    checkpoints.REMEDY,
    colormaps.REMEDY,
    cross_products.REMEDY,
    films.REMEDY,
    cuda_absent.DEVICE,
    checkpoints.CONFIGS_REMEDY,
    text_encoder_process.REMEDY,
    tetrahedra.REMEDY,
    model_ids.REMEDY,
)
PACKAGE = "threestudio"

_applied: dict[str, Applied] = {}
_device: list[str] = []


def activate(device: str, *, threestudio: Path | None = None) -> list[Applied]:
    """Make this process ready for ``import threestudio``; a second call changes nothing.

    Parameters
    ----------
    device
        ``"cpu"`` or ``"cuda"``. For ``"cuda"``, ``CUDA_VISIBLE_DEVICES`` has to be set before: the
        real packages look at the devices when they are imported here.
    threestudio
        A checkout, put in front of Python's search path; without it, the installed one is meant.

    Returns
    -------
    list of Applied
        The remedies in force before the import, in the order of :data:`REMEDIES`.

    Raises
    ------
    InputError
        When the device is neither, was another before, ``threestudio`` is no checkout, a required
        package is not installed, or threestudio was imported already.
    """
    _check_device(device)
    if not _device:
        _check_order()
        _check_requirements()
        if threestudio is not None:
            _put_on_path(threestudio)
        _device.append(device)
    try:
        return _apply(after_import=False)
    except Exception:
        deactivate()
        raise


def after_import() -> list[Applied]:
    """Apply the remedies that change threestudio's modules; a second call changes nothing.

    Returns
    -------
    list of Applied
        Those remedies.

    Raises
    ------
    InputError
        When :func:`activate` did not run, threestudio was not imported, or is another version
        whose modules lack what is to be changed.
    """
    if not _device:
        raise InputError("compat", "after_import", "no activate() before", "activate(), import")
    if PACKAGE not in sys.modules:
        raise InputError("compat", "after_import", "no threestudio", "import threestudio before")
    try:
        return _apply(after_import=True)
    except (ImportError, AttributeError) as error:
        version = getattr(sys.modules[PACKAGE], "__version__", "unknown")
        raise InputError(PACKAGE, "version", f"{version} ({error})", "0.2.3") from error


def active() -> list[Applied]:
    """All remedies in force in this process."""
    return list(_applied.values())


def deactivate() -> None:
    """Take back every change. What copied a replaced name meanwhile keeps it."""
    patching.undo_all()
    _applied.clear()
    _device.clear()


def _apply(*, after_import: bool) -> list[Applied]:
    (device,) = _device
    for remedy in REMEDIES:
        if remedy.after_import != after_import or remedy.name in _applied:
            continue
        reason = remedy.reason(device)
        if reason is not None:
            remedy.apply(device)
            _applied[remedy.name] = Applied(remedy, reason)
    return [one for one in _applied.values() if one.remedy.after_import == after_import]


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise InputError("compat", "device", device, " or ".join(DEVICES))
    if _device and _device != [device]:
        raise InputError("compat", "device", device, f"{_device[0]}, as in the first call")


def _check_order() -> None:
    if PACKAGE in sys.modules:
        raise InputError("compat", "activate", "threestudio imported before", "activate() first")


def _check_requirements() -> None:
    missing = requirements.missing_requirements()
    if missing:
        found = f"no {', '.join(missing)}"
        raise InputError("threestudio", "requirements", found, requirements.HINT)


def _put_on_path(checkout: Path) -> None:
    package = checkout / PACKAGE / "__init__.py"
    if not package.is_file():
        raise InputError(checkout, "threestudio", f"no {package}", "a checkout of threestudio")
    entry = str(checkout.resolve())
    before = list(sys.path)
    patching.on_undo(lambda: sys.path.__setitem__(slice(None), before))
    sys.path.insert(0, entry)
