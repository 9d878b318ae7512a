"""Which known extension of threestudio registers which module names.

Names and addresses are those of threestudio's extension catalogue (custom-extensions-list.json and
custom-extensions-modules-map.json of threestudio-project/threestudio-extensions), and of the
extensions' own sources where the catalogue has no names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass(frozen=True)
class Extension:
    """An extension: its usual folder under ``custom/``, its address, patterns of its names."""

    name: str
    address: str
    patterns: tuple[str, ...]


UPSTREAM_ALONE = (
    "control4d-multiview-system",
    "custom-mesh",
    "deep-floyd-guidance",
    "deep-floyd-prompt-processor",
    "dummy-prompt-processor",
    "efficient-dreamfusion-system",
    "fantasia3d-system",
    "gan-volume-renderer",
    "hybrid-rgb-latent-material",
    "image-condition-dreamfusion-system",
    "instructnerf2nerf-system",
    "latentnerf-system",
    "magic123-system",
    "magic3d-system",
    "neural-radiance-material",
    "patch-renderer",
    "pbr-material",
    "perceptual-loss",
    "sd-latent-adapter-material",
    "sdi-system",
    "sjc-system",
    "stable-diffusion-controlnet-guidance",
    "stable-diffusion-guidance",
    "stable-diffusion-instructpix2pix-guidance",
    "stable-diffusion-sdi-guidance",
    "stable-diffusion-unified-guidance",
    "stable-diffusion-vsd-guidance",
    "stable-zero123-guidance",
    "textmesh-system",
    "textured-background",
    "zero123-guidance",
    "zero123-simple-system",
    "zero123-system",
    "zero123-unified-guidance",
)
"""What threestudio 0.2.3 itself registers and the embedded host does not."""

EXTENSIONS = (
    Extension(
        "threestudio-3dgs",
        "https://github.com/DSaurus/threestudio-3dgs",
        ("gaussian-*", "diff-gaussian-*", "random-camera-sampler-datamodule"),
    ),
    Extension(
        "threestudio-diffusers-guidance",
        "https://github.com/DSaurus/threestudio-diffusers-guidance",
        ("diffusers-*", "*-sampler"),
    ),
    Extension(
        "threestudio-mvdream", "https://github.com/DSaurus/threestudio-mvdream", ("mvdream-*",)
    ),
    Extension(
        "threestudio-meshfitting",
        "https://github.com/DSaurus/threestudio-meshfitting",
        ("mesh-fitting-*",),
    ),
    Extension(
        "threestudio-4dfy",
        "https://github.com/DSaurus/threestudio-4dfy",
        ("4dfy-*", "fourdfy-system"),
    ),
    Extension(
        "threestudio-animate124",
        "https://github.com/HeliosZhao/Animate124/tree/threestudio",
        ("animate124-*", "dynamic-random-camera-datamodule"),
    ),
    Extension(
        "threestudio-dreamcraft3D",
        "https://github.com/DSaurus/threestudio-dreamcraft3D",
        ("dreamcraft3d-*",),
    ),
    Extension(
        "threestudio-geodream",
        "https://github.com/baaivision/GeoDream/tree/threestudio",
        ("geodream-*", "*-geodream", "prolificdreamerLR-system"),
    ),
    Extension(
        "threestudio-dreamwaltz",
        "https://github.com/huanngzh/threestudio-dreamwaltz",
        ("dreamwaltz-*", "smpl-prior-camera-datamodule", "multi-controlnet-guidance"),
    ),
    Extension("threestudio-shap-e", "https://github.com/DSaurus/threestudio-shap-e", ("shap-e-*",)),
    Extension("threestudio-lrm", "https://github.com/Adamdad/threestudio-lrm", ("lrm-*",)),
    Extension(
        "threestudio-stable-nerf-renderer",
        "https://github.com/DSaurus/threestudio-stable-nerf-renderer",
        ("stable-nerf-volume-renderer", "mask-nerf-volume-renderer"),
    ),
    Extension(
        "threestudio-gaussiandreamer",
        "https://github.com/cxh0519/threestudio-gaussiandreamer",
        ("gaussiandreamer-*",),
    ),
)


def extension_of(name: str) -> Extension | None:
    """Return the known extension that registers ``name``, a single module name."""
    for extension in EXTENSIONS:
        if any(fnmatchcase(name, pattern) for pattern in extension.patterns):
            return extension
    return None


def where_to_get(name: str, custom: Path | None) -> str | None:
    """Say which extension registers ``name`` and what to do about it, or nothing.

    Parameters
    ----------
    name
        A single module name.
    custom
        The folder of extensions of the threestudio in use, or ``None`` on the embedded host, which
        has none.
    """
    if custom is None and name in UPSTREAM_ALONE:
        return "a module of threestudio itself, which needs --host upstream"
    extension = extension_of(name)
    if extension is None:
        return None
    if custom is None:
        return f"a module of the extension {extension.name}, which needs --host upstream"
    there = _folder_of(extension, _entries(custom))
    if there is not None:
        failed = "it is disabled" if there.endswith("_disabled") else "its import failed, see above"
        return f"the extension {extension.name} to register it ({custom / there}: {failed})"
    return f"the extension {extension.name} in {custom}, from {extension.address}"


def _entries(custom: Path) -> list[str]:
    return sorted(entry.name for entry in custom.iterdir()) if custom.is_dir() else []


def _folder_of(extension: Extension, entries: Iterable[str]) -> str | None:
    repository = extension.address.removesuffix("/tree/threestudio").rpartition("/")[2]
    wanted = {name.lower() for name in (extension.name, repository)}
    for entry in entries:
        if entry.removesuffix("_disabled").lower() in wanted:
            return entry
    return None
