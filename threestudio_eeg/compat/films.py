"""``imageio.mimsave`` of an mp4, which needs imageio-ffmpeg; PyAV is here already."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from . import patching
from .absent import why_absent
from .remedy import Remedy


def reason(device: str) -> str | None:
    return why_absent("imageio_ffmpeg")


def apply(device: str) -> None:
    import imageio

    patching.set_attribute(imageio, "mimsave", _films_by_pyav(imageio.mimsave))


def _films_by_pyav(mimsave: Any) -> Any:
    """imageio's own PyAV writer wants to be told a codec, and threestudio names none."""
    from ..builtin.saving import save_film

    @functools.wraps(mimsave)
    def wrapped(uri: Any, ims: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(uri, (str, Path)) and Path(uri).suffix == ".mp4":
            return save_film(uri, list(ims), fps=kwargs.get("fps", 10))
        return mimsave(uri, ims, *args, **kwargs)

    return wrapped


REMEDY = Remedy(
    name="films",
    stands_in_for="imageio's mp4 writer of the package imageio-ffmpeg: PyAV, with H.264.",
    reason=reason,
    apply=apply,
    hint="pip install imageio-ffmpeg",
)
