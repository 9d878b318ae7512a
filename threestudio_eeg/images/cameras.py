"""Where pictures are asked to be taken from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..evaluation.views import camera_batch, orbit


@dataclass(frozen=True)
class PictureCameras:
    """Cameras of ``n_particles`` times ``n_views`` pictures, the views of a particle in a row.

    ``elevation``, ``azimuth`` (degrees), ``distance`` (world units) are (B,); ``c2w`` is
    (B, 4, 4). Without views (``view_dependent`` false) all stand in front and the prompt is not
    told.
    """

    elevation: Tensor
    azimuth: Tensor
    distance: Tensor
    c2w: Tensor
    n_views: int
    view_dependent: bool

    @classmethod
    def around(
        cls, n_particles: int, n_views: int, *, elevation: float, distance: float, device: str
    ) -> PictureCameras:
        """Evenly around the object, the first from the front; ``n_views`` 0 for no camera."""
        count = max(n_views, 1)
        ring = orbit(count, elevation=elevation, distance=distance)
        batch = camera_batch(ring, size=8, device=device)
        repeat = [n_particles]
        return cls(
            elevation=batch["elevation"].repeat(*repeat),
            azimuth=batch["azimuth"].repeat(*repeat),
            distance=batch["camera_distances"].repeat(*repeat),
            c2w=batch["c2w"].repeat(*repeat, 1, 1),
            n_views=count,
            view_dependent=n_views > 0,
        )

    def __len__(self) -> int:
        return len(self.azimuth)

    def as_batch(self, rows: slice = slice(None)) -> dict[str, Any]:
        """Keyword arguments of a guidance."""
        return {
            "elevation": self.elevation[rows],
            "azimuth": self.azimuth[rows],
            "camera_distances": self.distance[rows],
            "c2w": self.c2w[rows],
        }
