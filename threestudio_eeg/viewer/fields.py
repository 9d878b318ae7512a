"""Runs to look at: opened when asked for, read again when their checkpoint changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eeg_encoder.errors import InputError

KINDS = ("colour", "normal", "depth")


class Field:
    """One trial's object.

    Parameters
    ----------
    trial
        Trial folder.
    device
        Where it is rendered.

    Raises
    ------
    InputError
        When the folder is no trial folder or is half-written.
    """

    def __init__(self, trial: str | Path, device: str = "cpu") -> None:
        self.trial, self.device = Path(trial), device
        self.checkpoint = self.trial / "ckpts" / "last.ckpt"
        self._read()

    def _read(self) -> None:
        from ..evaluation.runs import open_run

        stamp = self._stamp()
        self.system = open_run(self.trial, device=self.device)
        self.stamp = stamp

    def _stamp(self) -> int:
        return self.checkpoint.stat().st_mtime_ns if self.checkpoint.is_file() else 0

    def refresh(self) -> bool:
        """Read a newer checkpoint; False where there is none or it is not whole yet."""
        if self._stamp() == self.stamp:
            return False
        particle = self.system.particle
        try:
            self._read()
        except InputError:
            return False
        self.system.select_particle(particle)
        return True

    @property
    def step(self) -> int:
        """Optimisation step of what is shown."""
        return int(self.system.true_global_step)

    @property
    def representation(self) -> str:
        """Name of the geometry in the registry."""
        return str(self.system.cfg.geometry_type)

    def render(
        self, c2w: np.ndarray, fovy_deg: float, size: int, kind: str = "colour", particle: int = 0
    ) -> np.ndarray:
        """A square picture (size, size, 3) uint8.

        Parameters
        ----------
        c2w
            (4, 4), OpenGL's: columns right, up, backwards, position.
        kind
            ``colour``, ``normal`` or ``depth`` (near is bright, nothing is black).
        """
        from ..evaluation.views import render_cameras

        self.system.select_particle(particle)
        position = c2w[:3, 3]
        distance = float(np.linalg.norm(position))
        camera = {
            "c2w": c2w,
            "fovy_deg": fovy_deg,
            "distance": distance,
            "elevation": float(np.degrees(np.arcsin(position[2] / max(distance, 1e-9)))),
            "azimuth": float(np.degrees(np.arctan2(position[1], position[0]))),
        }
        views = render_cameras(self.system, [camera], size=size, device=self.device)
        return picture_of(views, kind)


def picture_of(views: dict[str, Any], kind: str) -> np.ndarray:
    """The first view as (H, W, 3) uint8.

    Raises
    ------
    InputError
        For an unknown kind, or normals of a renderer that gives none.
    """
    if kind not in KINDS:
        raise InputError("view", "kind", kind, ", ".join(KINDS))
    if kind == "colour":
        values = views["composite"][0].numpy()
    elif kind == "depth":
        values = _shade_depth(views["depth"][0].numpy())
    elif views["normal"] is None:
        raise InputError("view", "normal", "a renderer that gives none", "colour or depth")
    else:
        values = views["normal"][0].numpy()
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _shade_depth(depth: np.ndarray) -> np.ndarray:
    hit = depth > 0
    if not hit.any():
        return np.zeros((*depth.shape[:2], 3))
    near, far = depth[hit].min(), depth[hit].max()
    shade = np.where(hit, 1 - 0.85 * (depth - near) / max(far - near, 1e-6), 0)
    return np.repeat(shade, 3, axis=-1)


def camera_pose(wxyz: np.ndarray, position: np.ndarray) -> np.ndarray:
    """OpenGL pose (4, 4) of viser's camera: a unit quaternion of OpenCV's axes, and a place."""
    w, x, y, z = np.asarray(wxyz, dtype=np.float64) / np.linalg.norm(wxyz)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    pose = np.eye(4)
    pose[:3, :3] = rotation * np.array([1.0, -1.0, -1.0])
    pose[:3, 3] = position
    return pose


def trials_of(conditioning: str | Path, beside: Path) -> dict[str, Path | None]:
    """Trial ids of a conditioning file, each with the run made from it, if there is one.

    Parameters
    ----------
    beside
        A trial folder; runs of other trials are looked for next to it, by the conditioning file's
        hash and the trial's id in their ``conditioning.json``.
    """
    import hashlib

    from eeg_encoder.conditioning import load_conditioning

    from ..evaluation.runs import run_record

    ids = [trial.id for trial in load_conditioning(conditioning).trials]
    own = hashlib.sha256(Path(conditioning).read_bytes()).hexdigest()
    made: dict[str, Path | None] = dict.fromkeys(ids)
    for file in sorted(beside.resolve().parent.glob("*/conditioning.json")):
        record = run_record(file.parent)
        trial = record.get("trial", {}).get("id")
        if record.get("conditioning_sha256") == own and trial in made:
            made[trial] = file.parent
    return made
