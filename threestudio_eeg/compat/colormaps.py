"""``matplotlib.cm.get_cmap``, which matplotlib 3.9 removed."""

from __future__ import annotations

from typing import Any

from . import patching
from .remedy import Remedy


def reason(device: str) -> str | None:
    from matplotlib import cm

    if hasattr(cm, "get_cmap") and cm.get_cmap is not get_cmap:
        return None
    return "this matplotlib has no cm.get_cmap"


def apply(device: str) -> None:
    from matplotlib import cm

    patching.set_attribute(cm, "get_cmap", get_cmap)


def get_cmap(name: str, lut: int | None = None) -> Any:
    """The colour map of that name, resampled to ``lut`` colours."""
    import matplotlib

    colormap = matplotlib.colormaps[name]
    return colormap if lut is None else colormap.resampled(lut)


REMEDY = Remedy(
    name="colormaps",
    stands_in_for="matplotlib.cm.get_cmap: matplotlib.colormaps.",
    reason=reason,
    apply=apply,
    hint="matplotlib<3.9",
)
