"""Objects and pictures of the phantom as folders of files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, writable_folder, write_json

from .objects import SPLITS, Instance, caption, solids_of
from .pictures import FOVY, Cameras, mesh_of, over, random_cameras, render, view_word
from .recording import draw_instances

MESH_FORMATS = ("ply", "obj", "glb")
PICTURE_TAG = 78


def write_meshes(
    folder: str | Path,
    split: str,
    per_category: int,
    *,
    categories: Sequence[str] | None = None,
    fmt: str = "ply",
    resolution: int = 128,
    seed: int = 0,
) -> list[Path]:
    """Write ``<stimulus>.<fmt>`` of every object, and ``objects.json`` with its parameters.

    ply and obj keep the world's axes (z up, front +x); glb has y up and the front along +z, as glTF
    demands.

    Raises
    ------
    InputError
        For an unknown split, category or format.
    """
    from rich.progress import track

    if fmt not in MESH_FORMATS:
        raise InputError("phantom objects", "fmt", fmt, ", ".join(MESH_FORMATS))
    instances = draw_instances({split: per_category}, seed, categories)
    folder = writable_folder(folder)
    files = [
        _write_mesh(folder / f"{instance.stimulus}.{fmt}", instance, resolution)
        for instance in track(instances, description="meshes", transient=True)
    ]
    objects = {i.stimulus: asdict(i) | {"caption": i.caption} for i in instances}
    write_json(folder / "objects.json", {"format": "phantom objects", "objects": objects})
    return files


def _write_mesh(path: Path, instance: Instance, resolution: int) -> Path:
    from ..builtin.exporter import GLTF_FROM_WORLD

    mesh = mesh_of(solids_of([instance]), resolution=resolution)
    if path.suffix == ".glb":
        mesh.apply_transform(GLTF_FROM_WORLD)
    with whole_file(path) as temporary:
        mesh.export(temporary, file_type=path.suffix[1:])
    return path


def write_pictures(
    folder: str | Path,
    split: str,
    per_category: int,
    *,
    views: int,
    size: int = 64,
    categories: Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> int:
    """Write pictures from random cameras on random flat backgrounds, and ``captions.jsonl``.

    A line has ``file_name`` and ``text`` (the caption with its view word, as diffusers' training
    scripts read them), and the category, colour, stimulus and camera.

    Returns
    -------
    int
        Number of pictures.
    """
    from PIL import Image
    from rich.progress import track

    instances = draw_instances({split: per_category}, seed, categories)
    folder = writable_folder(folder)
    lines = []
    for instance in track(instances, description="pictures", transient=True):
        for number, (rgb, record) in enumerate(_views(instance, views, size, seed, device)):
            name = f"{instance.stimulus}_{number:03d}.png"
            with whole_file(folder / name) as temporary:
                Image.fromarray(rgb).save(temporary, format="PNG")
            lines.append(json.dumps({"file_name": name, **record}))
    with whole_file(folder / "captions.jsonl") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def _views(
    instance: Instance, views: int, size: int, seed: int, device: str | torch.device
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    place = (PICTURE_TAG, SPLITS.index(instance.split), *map(ord, instance.stimulus))
    state = np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    cameras = random_cameras(views, generator)
    background = torch.rand(views, 3, generator=generator)
    solids = solids_of([instance]).select(torch.zeros(views, dtype=torch.long)).to(device)
    rgb = over(render(solids, cameras.to(device), size), background.to(device))
    pixels = (rgb * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for number in range(views):
        yield pixels[number], _record(instance, cameras, number)


def _record(instance: Instance, cameras: Cameras, number: int) -> dict[str, Any]:
    place = {name: float(value[number]) for name, value in vars(cameras).items()}
    word = view_word(place["elevation"], place["azimuth"])
    return {
        "text": caption(instance.category, instance.colour, word),
        "category": instance.category,
        "colour": instance.colour,
        "stimulus": instance.stimulus,
        **place,
        "fovy": FOVY,
    }
