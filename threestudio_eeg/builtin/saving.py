"""What a trial writes under ``save/``: pictures, films and meshes, each whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, writable_folder

SUBFOLDERS = ("configs", "ckpts", "save")


def make_trial_folder(trial_dir: str | Path) -> Path:
    """Make a trial's folder and its sub-folders.

    Raises
    ------
    InputError
        When a folder cannot be made or written.
    """
    folder = writable_folder(trial_dir)
    for name in SUBFOLDERS:
        writable_folder(folder / name)
    return folder


def to_pixels(picture: Tensor | np.ndarray, data_range: tuple[float, float] = (0, 1)) -> np.ndarray:
    """Turn a picture (H, W), (H, W, 1) or (H, W, 3) in ``data_range`` into uint8 (H, W, 3)."""
    values = torch.as_tensor(picture).detach().float().cpu()
    if values.ndim == 2:
        values = values[..., None]
    low, high = data_range
    values = ((values - low) / (high - low)).clamp(0, 1).expand(*values.shape[:2], 3)
    return (values * 255).round().to(torch.uint8).numpy()


def save_picture(path: str | Path, pixels: np.ndarray) -> Path:
    """Write uint8 pixels (H, W, 3) as PNG or JPEG."""
    import imageio.v3 as imageio

    with whole_file(path) as temporary:
        imageio.imwrite(temporary, pixels)
    return Path(path)


def save_picture_row(
    path: str | Path, pictures: Sequence[Tensor | tuple[Tensor, tuple[float, float]]]
) -> Path:
    """Write pictures of one height side by side; each alone in [0, 1], or with its data range."""
    parts = [to_pixels(*item) if isinstance(item, tuple) else to_pixels(item) for item in pictures]
    return save_picture(path, np.concatenate(parts, axis=1))


def save_film(path: str | Path, frames: Sequence[np.ndarray], fps: int = 30) -> Path:
    """Write uint8 frames (H, W, 3) as H.264 mp4; odd sides are padded by one pixel.

    Raises
    ------
    InputError
        When there are no frames, or the file cannot be written.
    """
    import imageio.v3 as imageio

    if not len(frames):
        raise InputError(path, "frames", "none", "at least one picture")
    with (
        whole_file(path) as temporary,
        imageio.imopen(temporary, "w", plugin="pyav") as film,
    ):
        film.init_video_stream("libx264", fps=fps, pixel_format="yuv420p")  # type: ignore[attr-defined]
        for frame in frames:
            film.write_frame(_even(frame))  # type: ignore[attr-defined]
    return Path(path)


def _even(frame: np.ndarray) -> np.ndarray:
    height, width = frame.shape[:2]
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class SaverMixin:
    """Save files by names relative to a trial's ``save`` folder."""

    _save_dir: Path | None = None

    def set_save_dir(self, folder: str | Path) -> None:
        """Choose the folder; it is made when missing."""
        self._save_dir = writable_folder(folder)

    def get_save_path(self, filename: str) -> Path:
        """Return the path of a file under the save folder."""
        if self._save_dir is None:
            raise ValueError("set_save_dir was not called")
        return self._save_dir / filename

    def save_image_row(self, filename: str, pictures: Sequence[Any]) -> Path:
        """Write pictures side by side, see :func:`save_picture_row`."""
        return save_picture_row(self.get_save_path(filename), pictures)

    def save_image_sequence(
        self, filename: str, folder: str, pattern: str = r"(\d+)\.png", fps: int = 30
    ) -> Path:
        """Write the pictures of ``folder`` whose names match, in the order of their numbers."""
        import imageio.v3 as imageio

        numbered = []
        for path in self.get_save_path(folder).iterdir():
            match = re.fullmatch(pattern, path.name)
            if match:
                numbered.append((int(match.group(1)), path))
        frames = [imageio.imread(path) for _, path in sorted(numbered)]
        return save_film(self.get_save_path(filename), frames, fps)

    def save_mesh(self, filename: str, mesh: Any) -> Path:
        """Write a ``trimesh.Trimesh`` in the format of the file name's suffix."""
        path = self.get_save_path(filename)
        with whole_file(path) as temporary:
            mesh.export(temporary, file_type=path.suffix[1:])
        return path
