"""``random-camera-datamodule``: cameras on a sphere, their rays and matrices.

World: right-handed, z up; azimuth 0 is +x, the front, and grows towards +y. Camera: OpenGL's, so
the columns of ``c2w`` are right, up and minus the viewing direction.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from eeg_encoder.errors import InputError

from .base import Updateable, parse_structured
from .quick_config import quick
from .registry import register

NEAR, FAR = 0.01, 100.0
WHERE = "random-camera-datamodule"
Batch = dict[str, Any]


@dataclass
class RandomCameraDataModuleConfig:
    """Ranges are uniform; angles in degrees. Sizes may be lists, one entry per resolution stage."""

    height: Any = 64
    width: Any = 64
    batch_size: Any = 1
    resolution_milestones: list[int] = field(default_factory=list)
    eval_height: int = 512
    eval_width: int = 512
    eval_batch_size: int = 1
    n_val_views: int = 1
    n_test_views: int = 120
    elevation_range: tuple[float, float] = (-10, 90)
    azimuth_range: tuple[float, float] = (-180, 180)
    camera_distance_range: tuple[float, float] = (1, 1.5)
    fovy_range: tuple[float, float] = (40, 70)
    camera_perturb: float = 0.1
    center_perturb: float = 0.2
    up_perturb: float = 0.02
    light_position_perturb: float = 1.0
    light_distance_range: tuple[float, float] = (0.8, 1.5)
    eval_elevation_deg: float = 15.0
    eval_camera_distance: float = 1.5
    eval_fovy_deg: float = 70.0
    light_sample_strategy: str = "dreamfusion"
    batch_uniform_azimuth: bool = True
    progressive_until: int = 0
    rays_d_normalize: bool = True


def positions_from_angles(elevation_deg: Tensor, azimuth_deg: Tensor, distances: Tensor) -> Tensor:
    """Points (B, 3) on spheres around the origin."""
    elevation, azimuth = torch.deg2rad(elevation_deg), torch.deg2rad(azimuth_deg)
    direction = torch.stack(
        (
            elevation.cos() * azimuth.cos(),
            elevation.cos() * azimuth.sin(),
            elevation.sin(),
        ),
        dim=-1,
    )
    return direction * distances[:, None]


def look_at(positions: Tensor, centers: Tensor, ups: Tensor) -> Tensor:
    """Camera-to-world matrices (B, 4, 4) of cameras at (B, 3) that look at centers (B, 3).

    Straight up and straight down, where ``ups`` is parallel to the view, the right-hand side is +y.
    """
    view = F.normalize(centers - positions, dim=-1)
    right = torch.linalg.cross(view, ups, dim=-1)
    fallback = torch.tensor([0.0, 1.0, 0.0]).to(right).expand_as(right)
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, fallback, right)
    right = F.normalize(right, dim=-1)
    up = F.normalize(torch.linalg.cross(right, view, dim=-1), dim=-1)
    upper = torch.stack((right, up, -view, positions), dim=-1)
    lower = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(upper).expand(len(upper), 1, 4)
    return torch.cat((upper, lower), dim=1)


def c2w_from_angles(elevation_deg: Tensor, azimuth_deg: Tensor, distances: Tensor) -> Tensor:
    """Camera-to-world matrices (B, 4, 4) of cameras that look at the origin, upright."""
    positions = positions_from_angles(elevation_deg, azimuth_deg, distances)
    up = torch.tensor([0.0, 0.0, 1.0]).to(positions).expand_as(positions)
    return look_at(positions, torch.zeros_like(positions), up)


def get_ray_directions(height: int, width: int, focal: float | Tensor = 1.0) -> Tensor:
    """Directions through pixel centres in the camera frame, not normalised.

    Parameters
    ----------
    focal
        In pixels, one number or (B,).

    Returns
    -------
    Tensor
        (H, W, 3), or (B, H, W, 3); the third component is -1.
    """
    focal = torch.as_tensor(focal, dtype=torch.float32)[..., None, None]
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=focal.device) + 0.5,
        torch.arange(width, dtype=torch.float32, device=focal.device) + 0.5,
        indexing="ij",
    )
    x, y = (columns - width / 2) / focal, -(rows - height / 2) / focal
    return torch.stack((x, y, -torch.ones_like(x)), dim=-1)


def get_rays(directions: Tensor, c2w: Tensor, normalize: bool = True) -> tuple[Tensor, Tensor]:
    """Origins and directions (B, H, W, 3) in the world of directions (B, H, W, 3) or (H, W, 3)."""
    rays_d = torch.einsum(
        "bij,...hwj->bhwi" if directions.dim() == 3 else "bij,bhwj->bhwi",
        c2w[:, :3, :3],
        directions,
    )
    rays_o = c2w[:, None, None, :3, 3].expand_as(rays_d)
    return rays_o, F.normalize(rays_d, dim=-1) if normalize else rays_d


def get_projection_matrix(fovy: Tensor, aspect: float, near: float, far: float) -> Tensor:
    """Perspective matrices (B, 4, 4), y pointing down as nvdiffrast wants; fovy in radians."""
    matrix = torch.zeros(len(fovy), 4, 4, dtype=torch.float32, device=fovy.device)
    cotangent = 1 / torch.tan(fovy / 2)
    matrix[:, 0, 0] = cotangent / aspect
    matrix[:, 1, 1] = -cotangent
    matrix[:, 2, 2] = -(far + near) / (far - near)
    matrix[:, 2, 3] = -2 * far * near / (far - near)
    matrix[:, 3, 2] = -1
    return matrix


def get_mvp_matrix(c2w: Tensor, proj_mtx: Tensor) -> Tensor:
    """World-to-clip matrices (B, 4, 4)."""
    rotation = c2w[:, :3, :3].transpose(1, 2)
    w2c = torch.eye(4).to(c2w).repeat(len(c2w), 1, 1)
    w2c[:, :3, :3] = rotation
    w2c[:, :3, 3:] = -rotation @ c2w[:, :3, 3:]
    return proj_mtx @ w2c


def camera_batch(
    c2w: Tensor,
    fovy: Tensor,
    height: int,
    width: int,
    normalize: bool = True,
    device: torch.device | None = None,
) -> Batch:
    """The part of a batch that follows from pose, field of view (radians) and size.

    ``device`` is where the rays are made, by default where the poses are.
    """
    focal, pose = _sent(0.5 * height / torch.tan(0.5 * fovy), device), _sent(c2w, device)
    rays_o, rays_d = get_rays(get_ray_directions(height, width, focal), pose, normalize)
    proj_mtx = get_projection_matrix(fovy, width / height, NEAR, FAR)
    return {
        "rays_o": rays_o,
        "rays_d": rays_d,
        "mvp_mtx": get_mvp_matrix(c2w, proj_mtx),
        "proj_mtx": proj_mtx,
        "c2w": c2w,
        "camera_positions": c2w[:, :3, 3],
        "fovy": fovy,
        "height": height,
        "width": width,
    }


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one training step: a function of (seed, step) and nothing else."""
    state = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@dataclass(frozen=True)
class Stage:
    """Size of the pictures and of the batch in one resolution stage."""

    height: int
    width: int
    batch_size: int


def resolution_stages(cfg: Any) -> list[Stage]:
    """One stage per entry of the size lists.

    Raises
    ------
    InputError
        When the lists do not fit ``resolution_milestones``.
    """
    count = len(cfg.resolution_milestones) + 1
    columns = []
    for name in ("height", "width", "batch_size"):
        value = cfg[name]
        values = [value] if isinstance(value, int) else list(value)
        if len(values) != count:
            expected = f"{count}, one more than resolution_milestones"
            raise InputError(WHERE, name, f"{len(values)} value(s)", expected)
        columns.append(values)
    return [Stage(*sizes) for sizes in zip(*columns, strict=True)]


class RandomCameraIterableDataset(IterableDataset, Updateable):
    """Endless random cameras. The batch of step k depends on (seed, k) only.

    Iteration starts at ``global_step`` and counts by itself, so that a loader that fetches ahead,
    or a resumed run, gives the same camera to the same step. Poses are drawn on the CPU, rays made
    on ``device``: a picture's rays are megabytes, and to copy them waits for a GPU.
    """

    def __init__(self, cfg: Any, seed: int, global_step: int = 0) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        if cfg.light_sample_strategy not in ("dreamfusion", "magic3d"):
            found = cfg.light_sample_strategy
            raise InputError(WHERE, "light_sample_strategy", found, "dreamfusion or magic3d")
        self.cfg = cfg
        self.seed = seed
        self.global_step = global_step
        self.stages = resolution_stages(cfg)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Remember the step, for the next time iteration starts."""
        self.global_step = global_step

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(step) for step in itertools.count(self.global_step))

    def stage(self, step: int) -> Stage:
        """Resolution stage of a step."""
        return self.stages[bisect.bisect_right(list(self.cfg.resolution_milestones), step)]

    def angle_ranges(self, step: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Ranges of elevation and azimuth (degrees), widening until ``progressive_until``."""
        share = min(1.0, step / (self.cfg.progressive_until + 1))
        if self.cfg.progressive_until == 0:
            share = 1.0
        rest = (1 - share) * self.cfg.eval_elevation_deg
        low, high = self.cfg.elevation_range
        left, right = self.cfg.azimuth_range
        return (rest + share * low, rest + share * high), (share * left, share * right)

    def batch(self, step: int) -> Batch:
        """Cameras, rays and lights of one step."""
        cfg, generator, stage = self.cfg, step_generator(self.seed, step), self.stage(step)
        n = stage.batch_size
        elevation, azimuth = self._angles(step, n, generator)
        distances = _uniform(n, cfg.camera_distance_range, generator)
        positions = positions_from_angles(elevation, azimuth, distances)
        positions = positions + _signed(n, cfg.camera_perturb, generator)
        centers = _normal(n, cfg.center_perturb, generator)
        ups = torch.tensor([0.0, 0.0, 1.0]) + _normal(n, cfg.up_perturb, generator)
        fovy = torch.deg2rad(_uniform(n, cfg.fovy_range, generator))
        c2w = look_at(positions, centers, ups)
        size = (stage.height, stage.width)
        return {
            **camera_batch(c2w, fovy, *size, cfg.rays_d_normalize, self.device),
            "light_positions": self._lights(positions, generator),
            "elevation": elevation,
            "azimuth": azimuth,
            "camera_distances": distances,
        }

    def _angles(self, step: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Elevation: even in degrees for half the steps, even over the sphere for the rest."""
        elevation_range, azimuth_range = self.angle_ranges(step)
        if torch.rand((), generator=generator) < 0.5:
            elevation = _uniform(n, elevation_range, generator)
        else:
            low, high = (math.sin(math.radians(angle)) for angle in elevation_range)
            elevation = torch.rad2deg(torch.asin(_uniform(n, (low, high), generator)))
        share = torch.rand(n, generator=generator)
        if self.cfg.batch_uniform_azimuth:
            share = (share + torch.arange(n)) / n
        left, right = azimuth_range
        return elevation, left + share * (right - left)

    def _lights(self, positions: Tensor, generator: torch.Generator) -> Tensor:
        """Point lights (B, 3): near the camera's direction, or in a cone around it (Magic3D)."""
        n = len(positions)
        distances = _uniform(n, self.cfg.light_distance_range, generator)[:, None]
        if self.cfg.light_sample_strategy == "dreamfusion":
            around = positions + _normal(n, self.cfg.light_position_perturb, generator)
            return F.normalize(around, dim=-1) * distances
        frame = look_at(positions, torch.zeros_like(positions), _upright(positions))[:, :3, :3]
        azimuth = _uniform(n, (-180.0, 180.0), generator)
        elevation = _uniform(n, (30.0, 90.0), generator)
        local = positions_from_angles(elevation, azimuth, torch.ones(n))
        return torch.einsum("bij,bj->bi", frame, local) * distances


def _sent(tensor: Tensor, device: torch.device | None) -> Tensor:
    """The tensor on a device; the host goes on at once."""
    if device is None or device == tensor.device:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _uniform(n: int, bounds: Any, generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + torch.rand(n, generator=generator) * (high - low)


def _signed(n: int, size: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(n, 3, generator=generator) * 2 - 1) * size


def _normal(n: int, size: float, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 3, generator=generator) * size


def _upright(positions: Tensor) -> Tensor:
    return torch.tensor([0.0, 0.0, 1.0]).to(positions).expand_as(positions)


class RandomCameraDataset(Dataset, Updateable):
    """Evaluation cameras around the object, at one elevation.

    ``val`` views split the circle evenly; ``test`` views go round and end where they began.
    """

    def __init__(self, cfg: Any, split: str) -> None:
        self.cfg = cfg
        self.n_views = cfg.n_val_views if split == "val" else cfg.n_test_views
        if split == "val":
            self.azimuth = torch.linspace(0, 360, self.n_views + 1)[:-1]
        else:
            self.azimuth = torch.linspace(0, 360, self.n_views)

    def __len__(self) -> int:
        return self.n_views

    def __getitem__(self, index: int) -> int:
        return index

    def collate(self, indices: list[int]) -> Batch:
        """Batch of the views ``indices``."""
        cfg = self.cfg
        azimuth = self.azimuth[indices]
        elevation = torch.full_like(azimuth, cfg.eval_elevation_deg)
        distances = torch.full_like(azimuth, cfg.eval_camera_distance)
        fovy = torch.deg2rad(torch.full_like(azimuth, cfg.eval_fovy_deg))
        c2w = c2w_from_angles(elevation, azimuth, distances)
        return {
            "index": torch.tensor(indices),
            **camera_batch(c2w, fovy, cfg.eval_height, cfg.eval_width, cfg.rays_d_normalize),
            "light_positions": c2w[:, :3, 3],
            "elevation": elevation,
            "azimuth": azimuth,
            "camera_distances": distances,
        }


@register("random-camera-datamodule")
class RandomCameraDataModule(LightningDataModule):
    """Random training cameras, and rings of cameras for validation and test.

    The training cameras are seeded by torch's seed at construction (``seed_everything``). Loaders
    take no numbers from the global generators.
    """

    cfg: RandomCameraDataModuleConfig
    train_dataset: RandomCameraIterableDataset
    val_dataset: RandomCameraDataset
    test_dataset: RandomCameraDataset

    def __init__(self, cfg: Any = None) -> None:
        super().__init__()
        self.cfg = quick(parse_structured(RandomCameraDataModuleConfig, cfg, f"config of {WHERE}"))
        self.seed = torch.initial_seed() % (1 << 63)

    def setup(self, stage: str | None = None) -> None:
        """Make the data sets of a stage: fit, validate, test, predict, or all."""
        if stage in (None, "fit"):
            self.train_dataset = RandomCameraIterableDataset(self.cfg, self.seed)
        if stage in (None, "fit", "validate"):
            self.val_dataset = RandomCameraDataset(self.cfg, "val")
        if stage in (None, "test", "predict"):
            self.test_dataset = RandomCameraDataset(self.cfg, "test")

    def train_dataloader(self) -> DataLoader:
        """Cameras from the step at which the trainer stands."""
        if self.trainer is not None:
            self.train_dataset.update_step(0, self.trainer.global_step)
            self.train_dataset.device = self.trainer.strategy.root_device
        return DataLoader(self.train_dataset, batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader:
        return self._ring(self.val_dataset)

    def test_dataloader(self) -> DataLoader:
        return self._ring(self.test_dataset)

    def predict_dataloader(self) -> DataLoader:
        return self._ring(self.test_dataset)

    def _ring(self, dataset: RandomCameraDataset) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.cfg.eval_batch_size,
            collate_fn=dataset.collate,
            generator=torch.Generator(),
        )
