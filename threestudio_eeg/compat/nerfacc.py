"""nerfacc where its CUDA kernels cannot run: no CUDA device, or no compiler for them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import shutil
from typing import Any

import torch
from torch import Tensor

from . import patching
from .remedy import Remedy

BUILD = "nerfacc_cuda"
OPERATIONS = {
    "segments": ("RaySegmentsSpec",),
    "grids": ("ray_aabb_intersect", "traverse_grids"),
    "scans": (
        "inclusive_sum",
        "exclusive_sum",
        "inclusive_prod_forward",
        "inclusive_prod_backward",
        "exclusive_prod_forward",
        "exclusive_prod_backward",
    ),
    "resampling": ("importance_sampling", "searchsorted"),
}


def reason(device: str) -> str | None:
    if device == "cpu":
        return "nerfacc has no CPU kernels"
    if _built_with_the_package() or shutil.which("nvcc"):
        return None
    return "nerfacc compiles its kernels on first use, and there is no nvcc"


def _built_with_the_package() -> bool:
    try:
        return importlib.util.find_spec("nerfacc.csrc") is not None
    except ModuleNotFoundError:
        return False


def apply(device: str) -> None:
    backend = importlib.import_module("nerfacc.cuda")
    for module, names in OPERATIONS.items():
        kernels = importlib.import_module(f"{__package__}.nerfacc_kernels.{module}")
        for name in names:
            patching.set_attribute(backend, name, getattr(kernels, name))
    pack = importlib.import_module("nerfacc.pack")
    importlib.import_module("nerfacc")
    patching.replace_in_modules("nerfacc", "pack_info", pack.pack_info, pack_info)


@torch.no_grad()
def pack_info(ray_indices: Tensor, n_rays: int | None = None) -> Tensor:
    """Where each ray begins in a packed list, and how long it is: (N,) to (R, 2).

    nerfacc's own needs no kernel, and refuses tensors that are not on a GPU.
    """
    if n_rays is None:
        n_rays = int(ray_indices.max()) + 1
    counts = torch.bincount(ray_indices, minlength=n_rays).to(ray_indices.dtype)
    return torch.stack((counts.cumsum(0) - counts, counts), dim=-1)


REMEDY = Remedy(
    name="nerfacc",
    stands_in_for="nerfacc's compiled operations (its scans, its grid traversal, its resampling): "
    "the same in plain torch.",
    reason=reason,
    apply=apply,
    hint="a CUDA device, and nvcc or a wheel of nerfacc with compiled kernels",
)


def reason_build(device: str) -> str | None:
    if device == "cpu" or reason(device) or _built_with_the_package():
        return None
    if _version(torch.__version__) < (2, 12):
        return None
    return "torch 2.12 and later compile extensions as C++20, which nerfacc's sources are not"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


def apply_build(device: str) -> None:
    from torch.utils import cpp_extension

    patching.set_attribute(cpp_extension, "load", _as_cpp17(cpp_extension.load))


def _as_cpp17(load: Any) -> Any:
    """``load`` that builds nerfacc, and nothing else, as C++17."""

    @functools.wraps(load)
    def wrapped(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == BUILD:
            for flags in ("extra_cflags", "extra_cuda_cflags"):
                kwargs[flags] = [*(kwargs.get(flags) or []), "-std=c++17"]
        return load(name, *args, **kwargs)

    return wrapped


BUILD_REMEDY = Remedy(
    name="nerfacc-build",
    stands_in_for="The language standard that nerfacc's kernels are compiled as: C++17.",
    reason=reason_build,
    apply=apply_build,
    hint="torch<2.12, or a wheel of nerfacc with compiled kernels",
)
