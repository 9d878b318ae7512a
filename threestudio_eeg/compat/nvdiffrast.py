"""nvdiffrast, which has to be compiled and runs on CUDA only.

threestudio imports it always, makes a context for every exporter, and rasterises only where a mesh
is rendered or textured. So contexts here are made without doing anything, and the operations go to
a rasteriser where one was given with :func:`use_rasteriser`; without one they are an error.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from . import patching
from .absent import complain, why_absent
from .remedy import Remedy

OPERATIONS = (
    "rasterize",
    "interpolate",
    "texture",
    "texture_construct_mip",
    "antialias",
    "antialias_construct_topology_hash",
)
CONTEXTS = ("RasterizeGLContext", "RasterizeCudaContext")
HINT = "nvdiffrast, built with nvcc for a CUDA device: https://github.com/NVlabs/nvdiffrast"

_rasteriser: Any = None


def use_rasteriser(rasteriser: Any) -> None:
    """Send nvdiffrast's operations to ``rasteriser``; ``None`` makes them errors again.

    Parameters
    ----------
    rasteriser
        An object with those of nvdiffrast's functions that it can do, under their names
        (``rasterize``, ``interpolate``, ``antialias``, ``texture``...), with their arguments.
    """
    global _rasteriser
    _rasteriser = rasteriser


def reason(device: str) -> str | None:
    if device == "cpu":
        return "nvdiffrast has no CPU kernels"
    return why_absent("nvdiffrast.torch")


def apply(device: str) -> None:
    contents: dict[str, Any] = {name: _operation(name) for name in OPERATIONS}
    contents.update({name: type(name, (_Context,), {}) for name in CONTEXTS})
    patching.on_undo(lambda: use_rasteriser(None))
    patching.add_module("nvdiffrast", patching.new_module("nvdiffrast"))
    patching.add_module("nvdiffrast.torch", patching.new_module("nvdiffrast.torch", **contents))


class _Context:
    """A rasterisation context that holds nothing."""

    def __init__(self, output_db: bool = True, mode: str = "automatic", device: Any = None) -> None:
        self.output_db, self.mode, self.device = output_db, mode, device


def _operation(name: str) -> Any:
    def operation(*args: Any, **kwargs: Any) -> Any:
        found = getattr(_rasteriser, name, None)
        if found is None:
            complain("nvdiffrast.torch", name, HINT)
        return found(*args, **kwargs)

    operation.__name__ = name
    return operation


REMEDY = Remedy(
    name="nvdiffrast",
    stands_in_for="Rasterisation by nvdiffrast: contexts can be made, so that everything which "
    "does not rasterise works; rasterising is an error that names nvdiffrast.",
    reason=reason,
    apply=apply,
    hint=HINT,
)


def reason_gl(device: str) -> str | None:
    if reason(device) is not None:
        return None
    if hasattr(_real(), "RasterizeGLContext"):
        return None
    return "this nvdiffrast has no RasterizeGLContext"


def apply_gl(device: str) -> None:
    real = _real()
    patching.set_attribute(real, "RasterizeGLContext", real.RasterizeCudaContext)


def _real() -> ModuleType:
    import importlib

    return importlib.import_module("nvdiffrast.torch")


GL_REMEDY = Remedy(
    name="nvdiffrast-gl",
    stands_in_for="nvdiffrast's OpenGL context, threestudio's default: its CUDA context.",
    reason=reason_gl,
    apply=apply_gl,
    hint="system.renderer.context_type=cuda system.exporter.context_type=cuda",
)
