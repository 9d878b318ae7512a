"""A geometry that starts from another run's: ``system.geometry_convert_from``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from eeg_encoder.errors import InputError

from .base import get_device, load_module_weights
from .registry import find, name_of

FIELD = "geometry_convert_from"


def converted_geometry(
    kind: Any,
    config: Any,
    source: str | Path,
    *,
    module: str = "geometry",
    override: Any = None,
    inherit_texture: bool = False,
) -> Any:
    """Make a geometry from the one in a trial's checkpoint.

    Parameters
    ----------
    kind
        The new geometry's class; its ``create_from`` does the conversion.
    config
        Of the new geometry.
    source
        A trial folder of the embedded host, or a checkpoint in its ``ckpts``.
    module
        Which module of the checkpoint: ``geometry``, or ``particles.0.geometry`` and so on.
    override
        Laid over the old geometry's config, for instance another ``isosurface_threshold``.
    inherit_texture
        Whether colours are taken along.

    Raises
    ------
    InputError
        When the source is no trial, its weights are of another representation than its config
        says, its surface is empty, or ``kind`` cannot start from it.
    """
    if not hasattr(kind, "create_from"):
        expected = "null: this representation cannot start from another"
        raise InputError(name_of(kind), FIELD, str(source), expected)
    old = previous_geometry(source, module, override).to(get_device())
    return kind.create_from(old, config, copy_net=inherit_texture).cpu()


def previous_geometry(source: str | Path, module: str = "geometry", override: Any = None) -> Any:
    """The geometry of a trial's checkpoint, as its own config describes it."""
    from .config import load_config

    checkpoint = Path(source)
    if checkpoint.is_dir():
        checkpoint = checkpoint / "ckpts" / "last.ckpt"
    state, epoch, step = load_module_weights(checkpoint, module_name=module)
    file = checkpoint.resolve().parent.parent / "configs" / "parsed.yaml"
    if not file.is_file():
        raise InputError(source, FIELD, "no configs/parsed.yaml beside it", "a trial's checkpoint")
    system = load_config(file).system
    config = OmegaConf.merge(system.geometry, override or {}, {"weights": None})
    geometry = find(system.geometry_type)(config)
    try:
        geometry.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        expected = f"weights of {system.geometry_type}, as configs/parsed.yaml says"
        raise InputError(checkpoint, module, reason, expected) from error
    geometry.do_update_step(epoch, step, on_load_weights=True)
    if "isosurface_threshold" not in (override or {}):
        _place_surface(geometry, system)
    return geometry.eval().requires_grad_(False)


def _place_surface(geometry: Any, system: Any) -> None:
    """Let the surface be where the run's exporter has it."""
    if "exporter_type" in system:
        own = {"geometry": geometry, "material": None, "background": None}
        find(system.exporter_type)(system.get("exporter", {}), **own)
