"""Pictures of a finished object from known cameras: rendered, written to disk, put on one sheet.

Cameras follow threestudio: right-handed world, z up, azimuth 0 on +x (the front), growing towards
+y, degrees. ``c2w`` is OpenGL's: columns right, up, backwards, position.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, writable_folder

if TYPE_CHECKING:
    import torch

DEPTH_LEVELS = 65535
_VIEW_FILE = re.compile(r"(\d{3,})(_depth|_normal)?\.(png|npy)")


def orbit(
    n_views: int, *, elevation: float = 15.0, distance: float = 2.0, fovy_deg: float = 40.0
) -> list[dict[str, Any]]:
    """Cameras evenly spaced around the z axis, looking at the origin, the first at the front.

    Returns
    -------
    list of dict
        ``azimuth``, ``elevation``, ``fovy_deg`` (degrees), ``distance`` (world units) and
        ``c2w`` (4, 4) float64.
    """
    return [
        {
            "azimuth": azimuth,
            "elevation": float(elevation),
            "distance": float(distance),
            "fovy_deg": float(fovy_deg),
            "c2w": camera_to_world(elevation, azimuth, distance),
        }
        for azimuth in np.linspace(0, 360, n_views, endpoint=False).tolist()
    ]


def rings(
    n_views: int,
    elevations: Sequence[float],
    *,
    distance: float = 2.0,
    fovy_deg: float = 40.0,
) -> list[dict[str, Any]]:
    """Cameras of several orbits, one an elevation; earlier ones get one more where it does not
    divide. Elevations that get no view are left out."""
    least, more = divmod(n_views, len(elevations))
    cameras: list[dict[str, Any]] = []
    for place, elevation in enumerate(elevations):
        count = least + (place < more)
        cameras += orbit(count, elevation=elevation, distance=distance, fovy_deg=fovy_deg)
    return cameras


def camera_to_world(elevation: float, azimuth: float, distance: float) -> np.ndarray:
    """Pose (4, 4) of a camera that looks at the origin with z up; angles in degrees."""
    e, a = math.radians(elevation), math.radians(azimuth)
    back = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([-math.sin(a), math.cos(a), 0.0])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, distance * back], axis=1)
    return pose


def camera_batch(
    cameras: Sequence[Mapping[str, Any]], *, size: int, device: torch.device | str
) -> dict[str, Any]:
    """The batch that threestudio's data modules give for these cameras; the light sits at them."""
    import torch

    from ..builtin import cameras as geometry

    def column(name: str) -> torch.Tensor:
        return torch.tensor([camera[name] for camera in cameras], dtype=torch.float32)

    c2w = torch.as_tensor(np.stack([camera["c2w"] for camera in cameras]), dtype=torch.float32)
    batch: dict[str, Any] = {
        **geometry.camera_batch(c2w, torch.deg2rad(column("fovy_deg")), size, size),
        "light_positions": c2w[:, :3, 3],
        "elevation": column("elevation"),
        "azimuth": column("azimuth"),
        "camera_distances": column("distance"),
        "index": torch.arange(len(cameras)),
    }
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def render_views(
    system: Any,
    *,
    n_views: int = 8,
    elevation: float = 15.0,
    distance: float = 2.0,
    fovy_deg: float = 40.0,
    size: int = 128,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Render an object from a ring of cameras with a threestudio system, one view at a time.

    Parameters
    ----------
    system
        A Lightning module of either host: ``system(batch)`` gives ``comp_rgb``, ``opacity``,
        ``depth`` (summed along the ray, not divided by opacity) and, where the renderer has
        them, ``comp_rgb_fg`` and ``comp_normal``. It is put in evaluation mode and back.

    Returns
    -------
    dict
        CPU tensors ``composite`` (V, H, W, 3), the picture over the system's own background;
        ``rgb`` (V, H, W, 3), the colour of the object alone, not multiplied by opacity;
        ``opacity`` (V, H, W, 1); ``depth`` (V, H, W, 1), distance along the ray, 0 where there
        is no surface; ``normal`` (V, H, W, 3) in [0, 1] or None; and ``cameras``, the list of
        `orbit`.
    """
    cameras = orbit(n_views, elevation=elevation, distance=distance, fovy_deg=fovy_deg)
    return render_cameras(system, cameras, size=size, device=device)


def render_cameras(
    system: Any,
    cameras: Sequence[Mapping[str, Any]],
    *,
    size: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Render an object from these cameras, one view at a time; returns what `render_views` does."""
    import torch
    from rich.progress import track

    training = system.training
    system.eval()
    try:
        with torch.no_grad():
            outputs = [
                _one_view(system(camera_batch([camera], size=size, device=device)))
                for camera in track(
                    cameras, description="views", transient=True, disable=not progress
                )
            ]
    finally:
        system.train(training)
    views: dict[str, Any] = {
        name: torch.cat([output[name] for output in outputs])
        for name in ("composite", "rgb", "opacity", "depth")
    }
    normals = [output["normal"] for output in outputs if output["normal"] is not None]
    views["normal"] = torch.cat(normals) if len(normals) == len(outputs) else None
    views["cameras"] = list(cameras)
    return views


def _one_view(output: Mapping[str, Any]) -> dict[str, Any]:
    """Undo the multiplication by opacity in what a volume renderer gives."""
    opacity = output["opacity"].float().clamp(0, 1)
    solid = opacity > 1e-3
    safe = opacity.clamp_min(1e-3)
    front = output.get("comp_rgb_fg")
    colour = output["comp_rgb"] if front is None else front / safe
    normal = output.get("comp_normal")
    return {
        "composite": output["comp_rgb"].float().clamp(0, 1).cpu(),
        "rgb": (colour * solid).float().clamp(0, 1).cpu(),
        "opacity": opacity.cpu(),
        "depth": (output["depth"].float() / safe * solid).cpu(),
        "normal": None if normal is None else normal.float().clamp(0, 1).cpu(),
    }


def save_views(
    folder: str | Path,
    *,
    rgb: Any,
    opacity: Any,
    depth: Any,
    cameras: Sequence[Mapping[str, Any]],
    normal: Any = None,
    extra: Mapping[str, Any] | None = None,
    **_: Any,
) -> list[Path]:
    """Write views as pictures with their cameras; what `render_views` returns fits as keywords.

    Parameters
    ----------
    folder
        Gets ``000.png`` (RGBA, colour not multiplied by opacity), ``000_depth.png`` (16 bit),
        ``000_depth.npy`` (float32, world units), ``000_normal.png`` (if given), and last
        ``transforms.json`` (NeRF's layout, colours only) and ``cameras.json``.
    rgb, opacity, depth, normal
        Tensors or arrays (V, H, W, 3), (V, H, W, 1), (V, H, W, 1), (V, H, W, 3). Colours in
        [0, 1]; depth in world units along the ray, 0 for none.
    cameras
        As `orbit` gives them, one a view.
    extra
        Further entries of ``cameras.json``.

    Returns
    -------
    list of Path
        The colour pictures, in order.

    Raises
    ------
    InputError
        When the shapes do not agree or a value is not finite.
    """
    colours = _pictures("rgb", rgb, 3, len(cameras))
    opacities = _pictures("opacity", opacity, 1, len(cameras))
    depths = _pictures("depth", depth, 1, len(cameras))
    normals = None if normal is None else _pictures("normal", normal, 3, len(cameras))
    folder = writable_folder(folder)
    scale = max(float(depths.max(initial=0.0)), 1e-6) / DEPTH_LEVELS
    paths = []
    for index, (colour, alpha) in enumerate(zip(colours, opacities, strict=True)):
        path = folder / f"{index:03d}.png"
        _save_png(Image.fromarray(_bytes(np.concatenate([colour, alpha], axis=-1))), path)
        levels = np.rint(depths[index, :, :, 0] / scale).astype(np.uint16)
        _save_png(Image.fromarray(levels), folder / f"{index:03d}_depth.png")
        with whole_file(folder / f"{index:03d}_depth.npy") as temporary:
            np.save(temporary, depths[index, :, :, 0], allow_pickle=False)
        if normals is not None:
            _save_png(Image.fromarray(_bytes(normals[index])), folder / f"{index:03d}_normal.png")
        paths.append(path)
    height, width = colours.shape[1:3]
    _write_text(folder / "transforms.json", _nerf_file(cameras, width, height))
    described = _camera_file(cameras, width, height, scale, normals)
    _write_text(folder / "cameras.json", {**described, **(extra or {})})
    return paths


def remove_views(folder: str | Path, *, keep: int) -> None:
    """Remove what an earlier, longer set left in a folder: views from number ``keep`` on."""
    for path in Path(folder).iterdir():
        number = _VIEW_FILE.fullmatch(path.name)
        if number and int(number.group(1)) >= keep:
            path.unlink()


def load_depth(picture: str | Path) -> np.ndarray:
    """Read one 16-bit depth picture back as (H, W) float64 world units, 0 for none."""
    picture = Path(picture)
    with open(picture.parent / "cameras.json", encoding="utf-8") as file:
        scale = json.load(file)["depth_scale"]
    with Image.open(picture) as image:
        return np.asarray(image, dtype=np.float64) * scale


def _pictures(name: str, value: Any, channels: int, n_views: int) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value, dtype=np.float32)
    if array.ndim != 4 or array.shape[0] != n_views or array.shape[-1] != channels:
        raise InputError("save_views", name, array.shape, f"({n_views}, H, W, {channels})")
    if not np.isfinite(array).all():
        raise InputError("save_views", name, "NaN or infinity", "finite values")
    return array


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _save_png(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as temporary:
        picture.save(temporary, format="PNG")


def _write_text(path: Path, value: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _camera_file(
    cameras: Sequence[Mapping[str, Any]],
    width: int,
    height: int,
    depth_scale: float,
    normals: np.ndarray | None,
) -> dict[str, Any]:
    frames = []
    for index, camera in enumerate(cameras):
        frame: dict[str, Any] = {"picture": f"{index:03d}.png", "depth": f"{index:03d}_depth.png"}
        if normals is not None:
            frame["normal"] = f"{index:03d}_normal.png"
        frame.update({name: _plain(value) for name, value in camera.items()})
        frames.append(frame)
    return {
        "convention": "c2w is OpenGL: columns right, up, backwards; world z up; front on +x",
        "units": "degrees, world units; depth is distance along the ray from the camera (not along "
        "its axis), 0 for none: pixel * depth_scale in the 16-bit PNG, as it is in the .npy",
        "normal_convention": "world axes, colour = (n + 1) / 2 times opacity",
        "width": width,
        "height": height,
        "depth_scale": depth_scale,
        "views": frames,
    }


def _nerf_file(cameras: Sequence[Mapping[str, Any]], width: int, height: int) -> dict[str, Any]:
    fovy = math.radians(cameras[0]["fovy_deg"])
    focal = 0.5 * height / math.tan(fovy / 2)
    return {
        "camera_model": "OPENCV",
        "camera_angle_x": 2 * math.atan(0.5 * width / focal),
        "camera_angle_y": fovy,
        "fl_x": focal,
        "fl_y": focal,
        "cx": width / 2,
        "cy": height / 2,
        "w": width,
        "h": height,
        "k1": 0.0,
        "k2": 0.0,
        "p1": 0.0,
        "p2": 0.0,
        "frames": [
            {"file_path": f"{index:03d}.png", "transform_matrix": _plain(camera["c2w"])}
            for index, camera in enumerate(cameras)
        ],
    }


def _plain(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def open_picture(picture: Any) -> Image.Image:
    """Turn a path, a PIL picture, or an array (H, W, 3 or 4), bytes or [0, 1], into RGB(A).

    Raises
    ------
    InputError
        When the file is missing or is no picture, or the array has another shape.
    """
    if isinstance(picture, str | Path):
        try:
            with Image.open(picture) as image:
                image.load()
                picture = image
        except OSError as error:
            raise InputError(picture, "picture", error, "a readable picture file") from error
    if isinstance(picture, Image.Image):
        return picture if picture.mode in ("RGB", "RGBA") else picture.convert("RGBA")
    if hasattr(picture, "detach"):
        picture = picture.detach().cpu().numpy()
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise InputError("picture", "shape", array.shape, "(height, width, 3 or 4)")
    return Image.fromarray(array if array.dtype == np.uint8 else _bytes(array))


def contact_sheet(
    pictures: Sequence[Any],
    columns: int,
    labels: Sequence[str] | None = None,
    *,
    cell: int | None = None,
    background: str = "white",
) -> Image.Image:
    """Put pictures on one sheet, row by row, each over its label.

    Parameters
    ----------
    pictures
        Whatever `open_picture` reads; transparent ones are laid over ``background``.
    columns
        Pictures in a row.
    labels
        One text a picture, or None for no labels. A text that is too wide is cut.
    cell
        Side of one picture in pixels; by default that of the first.
    """
    if not pictures:
        raise InputError("contact_sheet", "pictures", 0, "at least one")
    if labels is not None and len(labels) != len(pictures):
        raise InputError("contact_sheet", "labels", len(labels), f"{len(pictures)}, as pictures")
    opened = [open_picture(picture) for picture in pictures]
    side = cell or max(opened[0].size)
    gap = max(2, side // 32)
    text_size = max(9, side // 11)
    font = ImageFont.load_default(size=text_size)
    caption = 0 if labels is None else int(text_size * 1.6)
    rows = math.ceil(len(opened) / columns)
    sheet = Image.new(
        "RGB", (gap + columns * (side + gap), gap + rows * (side + caption + gap)), background
    )
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(opened):
        left = gap + index % columns * (side + gap)
        top = gap + index // columns * (side + caption + gap)
        fitted = _fit(picture, side)
        sheet.paste(fitted, (left, top), fitted)
        if labels is not None:
            text = _cut(labels[index], font, side)
            pen.text((left + side / 2, top + side + caption / 2), text, "#222", font, anchor="mm")
    return sheet


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """Scale a picture into a square, centred, transparent around."""
    ratio = side / max(picture.size)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    scaled = picture.convert("RGBA").resize(size, Image.Resampling.LANCZOS)
    square.paste(scaled, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _cut(text: str, font: Any, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
