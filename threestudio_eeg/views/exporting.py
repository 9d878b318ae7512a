"""N posed pictures of a trained object, with depth, normals, cameras, a sheet and a film."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file, writable_folder

from ..evaluation.runs import open_run, run_record
from ..evaluation.views import contact_sheet, remove_views, render_cameras, rings, save_views
from .normals import normals_of_depth

FRAME_COLOUR = 0.85
FRAMES_PER_SECOND = 12


@dataclass(frozen=True)
class ViewOptions:
    """Which views of which run.

    Parameters
    ----------
    run
        Trial folder.
    out
        Folder for the files.
    n
        Views in all, shared out evenly over ``elevations``, the first ones getting one more.
    elevations, distance, fovy_deg
        Degrees above the horizon, world units, vertical field of view in degrees. ``distance`` and
        ``fovy_deg`` default to the run's own evaluation cameras.
    size
        Side of the square pictures in pixels.
    checkpoint
        Default the run's ``ckpts/last.ckpt``.
    particle
        Which of several objects that were made side by side.
    device
        ``cpu`` or ``cuda``.
    """

    run: Path
    out: Path
    n: int = 24
    elevations: Sequence[float] = (15.0,)
    distance: float | None = None
    fovy_deg: float | None = None
    size: int = 256
    checkpoint: Path | None = None
    particle: int = 0
    device: str = "cpu"


def export_views(options: ViewOptions) -> dict[str, Path]:
    """Render and write a multi-view set.

    Returns
    -------
    dict
        ``folder``, ``cameras``, ``transforms``, ``sheet`` and ``film``. See
        :func:`.evaluation.views.save_views` for the pictures.

    Raises
    ------
    InputError
        When the run cannot be opened, or a number is out of range.
    """
    _check(options)
    system = open_run(options.run, device=options.device, checkpoint=options.checkpoint)
    if options.particle:
        system.select_particle(options.particle)
    cameras = rings(options.n, options.elevations, **_lens(options))
    out = writable_folder(options.out)
    views = render_cameras(system, cameras, size=options.size, device=options.device, progress=True)
    how = "rendered"
    if views["normal"] is None:
        views["normal"], how = normals_of_depth(views), "of the depth"
    pictures = save_views(out, **views, extra={"normals": how, "source": _source(options, system)})
    remove_views(out, keep=len(pictures))
    frames = _frames(views)
    files = {"folder": out, "cameras": out / "cameras.json", "transforms": out / "transforms.json"}
    return {**files, "sheet": _sheet(out, frames, cameras), "film": _film(out, frames)}


def _check(options: ViewOptions) -> None:
    where = "command line"
    if options.n < 1 or not len(options.elevations):
        raise InputError(where, "n", options.n, "one view or more")
    for elevation in options.elevations:
        if not -89 <= elevation <= 89:
            raise InputError(where, "elevation", elevation, "-89 to 89 degrees")
    if options.size < 8:
        raise InputError(where, "size", options.size, "8 pixels or more")


def _lens(options: ViewOptions) -> dict[str, float]:
    """Distance and field of view: as given, else those that the run shows its object from."""
    from ..evaluation.runs import run_config

    data = run_config(options.run).data
    own = {
        "distance": float(data.get("eval_camera_distance", 2.0)),
        "fovy_deg": float(data.get("eval_fovy_deg", 40.0)),
    }
    given = {"distance": options.distance, "fovy_deg": options.fovy_deg}
    lens = {name: own[name] if value is None else value for name, value in given.items()}
    if not 0 < lens["fovy_deg"] < 180 or not lens["distance"] > 0:
        found = f"{lens['distance']}, {lens['fovy_deg']}"
        raise InputError("command line", "distance, fovy", found, "above 0, and 0 to 180 degrees")
    return lens


def _source(options: ViewOptions, system: Any) -> dict[str, Any]:
    record = run_record(options.run)
    return {
        "run": Path(options.run).name,
        "step": int(system.true_global_step),
        "particle": options.particle,
        "trial": record.get("trial"),
    }


def _frames(views: dict[str, Any]) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 over light grey."""
    rgb = views["rgb"] * views["opacity"] + FRAME_COLOUR * (1 - views["opacity"])
    return list((rgb.clamp(0, 1) * 255).round().byte().numpy())


def _sheet(out: Path, frames: Sequence[np.ndarray], cameras: Sequence[dict[str, Any]]) -> Path:
    labels = [f"{c['azimuth']:.0f}°, {c['elevation']:.0f}° up" for c in cameras]
    columns = max(1, round(len(frames) ** 0.5 * 1.3))
    path = out / "sheet.png"
    with whole_file(path) as temporary:
        contact_sheet(frames, columns, labels, cell=min(256, len(frames[0]))).save(
            temporary, format="PNG"
        )
    return path


def _film(out: Path, frames: Sequence[np.ndarray]) -> Path:
    from ..builtin.saving import save_film

    return save_film(out / "views.mp4", frames, fps=FRAMES_PER_SECOND)
