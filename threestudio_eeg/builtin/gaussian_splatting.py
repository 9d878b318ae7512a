"""``gaussian-splatting``: an object as a changing number of coloured 3D Gaussians."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eeg_encoder.errors import InputError

from .config import C
from .gaussian_density import as_matter, level_at, level_on_lattice
from .gaussian_files import SH_C0, read_splats
from .gaussian_rasteriser import Splats, rotation_matrices
from .isosurface import ImplicitGeometry, at_points, contract_to_unit_box
from .optimizers import plain
from .registry import register

NEIGHBOURS = 3
LEAST_SCALE = 1e-4
RESET_OPACITY = 0.01
CLONE_OPACITY_LIMIT = 0.999
SPLIT_SHRINK = 1.6
LEARNED = ("_xyz", "_features_dc", "_scaling", "_rotation", "_opacity")
RATES = {
    "_xyz": "position_lr",
    "_features_dc": "feature_lr",
    "_scaling": "scaling_lr",
    "_rotation": "rotation_lr",
    "_opacity": "opacity_lr",
}


@register("gaussian-splatting")
class GaussianSplatting(ImplicitGeometry):
    """3D Gaussians with a colour each (Kerbl et al. 2023), in ``max_num`` places.

    Name, fields and weights are those of the extension threestudio-3dgs. What differs: the tensors
    have a fixed length and ``alive`` says which places hold a splat, so that optimiser and
    checkpoints keep their shapes; growing draws no random numbers; ``scale_lr`` is the same as
    ``scaling_lr``, as the extension's configs mean it; there is no view dependence.

    Growing and pruning follow the paper. Every ``densification_interval`` steps, splats whose mean
    gradient in the pictures (in half picture sides) is above ``densify_grad_threshold`` are split
    in two along their longest axis when larger than ``split_thresh``, else copied; both keep the
    splat's mean and, in a split, its covariance. A copy shares the opacity so that the pair is as
    opaque as the one was (Rota Bulò et al. 2024). Splats below ``min_opac_prune`` give up their
    place.

    The surface is that of the opacity-weighted sum of the Gaussians, holes inside filled; or that
    of their matter's occlusion, where ``gaussian-mesh-exporter`` has one.

    A field of our own: ``eps``, Adam's for all rates. A larger one than threestudio-3dgs's leaves
    splats in peace whose gradients are small, hence noise.
    """

    @dataclass
    class Config(ImplicitGeometry.Config):
        isosurface_threshold: Any = 0.5
        isosurface_method: str = "mc-cpu"
        max_num: int = 500000
        sh_degree: int = 0
        position_lr: Any = 0.001
        scale_lr: Any = None
        feature_lr: Any = 0.01
        opacity_lr: Any = 0.05
        scaling_lr: Any = 0.005
        rotation_lr: Any = 0.005
        pred_normal: bool = False
        normal_lr: Any = 0.001
        eps: float = 1e-15

        densification_interval: int = 50
        prune_interval: int = 50
        opacity_reset_interval: int = 100000
        densify_from_iter: int = 100
        prune_from_iter: int = 100
        densify_until_iter: int = 2000
        prune_until_iter: int = 2000
        densify_grad_threshold: Any = 0.01
        min_opac_prune: Any = 0.005
        split_thresh: Any = 0.02
        radii2d_thresh: Any = 1000

        sphere: bool = False
        prune_big_points: bool = False
        color_clip: Any = 2.0

        geometry_convert_from: str = ""
        load_ply_only_vertex: bool = False
        init_num_pts: int = 100
        pc_init_radius: float = 0.8
        opacity_init: float = 0.1

        shap_e_guidance_config: dict = field(default_factory=dict)

    _xyz: nn.Parameter
    _features_dc: nn.Parameter
    _scaling: nn.Parameter
    _rotation: nn.Parameter
    _opacity: nn.Parameter
    alive: Tensor
    gradient_sum: Tensor
    gradient_count: Tensor
    max_radii2D: Tensor
    changed_at: Tensor
    where = "gaussian-splatting"
    _step = 0

    def configure(self, *args: Any, **kwargs: Any) -> None:
        super().configure()
        self._check_config()
        places = self.cfg.max_num
        for name, width in (("_xyz", (3,)), ("_features_dc", (1, 3)), ("_scaling", (3,))):
            setattr(self, name, nn.Parameter(torch.zeros(places, *width)))
        self._rotation = nn.Parameter(torch.zeros(places, 4))
        self._opacity = nn.Parameter(torch.zeros(places, 1))
        self.register_buffer("alive", torch.zeros(places, dtype=torch.bool))
        for name in ("gradient_sum", "gradient_count", "max_radii2D"):
            self.register_buffer(name, torch.zeros(places))
        self.register_buffer("changed_at", torch.tensor(-1))
        if self.cfg.geometry_convert_from:
            self.place(read_splats(self.cfg.geometry_convert_from))
        else:
            self._place_ball()

    def _check_config(self) -> None:
        cfg = self.cfg
        given = str(cfg.geometry_convert_from)
        refused = (
            ("sh_degree", cfg.sh_degree != 0, "0: colours do not depend on the view here"),
            ("pred_normal", cfg.pred_normal, "false on this host"),
            ("load_ply_only_vertex", cfg.load_ply_only_vertex, "false on this host"),
            ("prune_big_points", cfg.prune_big_points, "false: radii2d_thresh does this"),
            ("shap_e_guidance_config", bool(cfg.shap_e_guidance_config), "nothing on this host"),
            ("init_num_pts", not 1 <= cfg.init_num_pts <= cfg.max_num, f"1 to {cfg.max_num}"),
            ("opacity_init", not 0 < cfg.opacity_init < 1, "a number between 0 and 1"),
            (
                "geometry_convert_from",
                bool(given) and Path(given).suffix != ".ply",
                "a ply file of splats (a checkpoint: system.geometry_convert_from)",
            ),
        )
        for name, bad, expected in refused:
            if bad:
                raise InputError(self.where, name, cfg[name], expected)

    @torch.no_grad()
    def place(self, splats: dict[str, Tensor]) -> None:
        """Fill the first places with splats and empty the others.

        Parameters
        ----------
        splats
            As stored: ``_xyz`` (n, 3), ``_features_dc`` (n, 1, 3), ``_scaling`` (n, 3, logarithms),
            ``_rotation`` (n, 4), ``_opacity`` (n, 1, logits).
        """
        n = len(splats["_xyz"])
        if n > self.cfg.max_num:
            raise InputError(self.where, "max_num", self.cfg.max_num, f"at least {n}")
        for name in LEARNED:
            getattr(self, name)[:n] = splats[name]
        self.alive[:] = torch.arange(self.cfg.max_num, device=self.alive.device) < n

    def _place_ball(self) -> None:
        cfg = self.cfg
        directions = nn.functional.normalize(torch.randn(cfg.init_num_pts, 3), dim=-1)
        share = torch.ones(()) if cfg.sphere else torch.rand(cfg.init_num_pts, 1) ** (1 / 3)
        points = directions * share * cfg.pc_init_radius
        self.place(_round_splats(points, torch.full_like(points, 0.5), cfg.opacity_init))

    @classmethod
    def create_from(cls, other: Any, cfg: Any = None, copy_net: bool = True) -> GaussianSplatting:
        """Splats on another geometry's surface, ``init_num_pts`` of them.

        With ``copy_net`` they have its colours: the sigmoid of its first three features, as
        ``no-material`` shows them.
        """
        geometry = cls(cfg)
        if isinstance(other, GaussianSplatting):
            geometry.place(other.stored())
            return geometry
        points = _points_on(other.isosurface(), geometry.cfg.init_num_pts)
        colours = torch.full_like(points, 0.5)
        features = other.export(points=points).get("features") if copy_net else None
        if features is not None and features.shape[-1] >= 3:
            colours = features[..., :3].sigmoid()
        placed = _round_splats(points.cpu(), colours.cpu(), geometry.cfg.opacity_init)
        geometry.place(placed)
        return geometry

    def stored(self) -> dict[str, Tensor]:
        """What the learned tensors hold of the splats that are alive."""
        return {name: getattr(self, name).detach()[self.alive] for name in LEARNED}

    @property
    def indices(self) -> Tensor:
        """Places that hold a splat, (N,)."""
        return self.alive.nonzero().squeeze(1)

    def splats(self) -> tuple[Splats, Tensor]:
        """Splats that are alive, and their colours (N, 3), not below zero."""
        xyz, features, scaling, rotation, opacity = (
            getattr(self, name).index_select(0, self.indices) for name in LEARNED
        )
        splats = Splats(
            xyz,
            scaling.exp(),
            nn.functional.normalize(rotation, dim=-1),
            opacity.sigmoid().squeeze(-1),
        )
        clip = float(C(self.cfg.color_clip, 0, self._step))
        colours = (features.squeeze(1).clamp(-clip, clip) * SH_C0 + 0.5).clamp(min=0)
        return splats, colours

    def own_groups(self) -> list[dict[str, Any]]:
        """Groups of the optimiser with the learning rates of the config; rates may be schedules."""
        groups = []
        for name, rate in RATES.items():
            value = plain(self.cfg[rate])
            if rate == "scaling_lr" and self.cfg.scale_lr is not None:
                value = plain(self.cfg.scale_lr)
            group = {"params": [getattr(self, name)], "name": name, "eps": self.cfg.eps}
            group.update(lr=float(C(self._scheduled(value), 0, 0)), weight_decay=0.0)
            groups.append({**group, "schedule": value})
        return groups

    @staticmethod
    def _scheduled(value: Any) -> Any:
        from omegaconf import OmegaConf

        return OmegaConf.create(value) if isinstance(value, list) else value

    def watch(self, means: Tensor, radii: Tensor, height: int, width: int) -> None:
        """Add up the gradients that a render's means (B, N, 2) in pixels will get, and its radii.

        A radius (B, N) of zero means that the splat is not in the picture.
        """
        if not means.requires_grad:
            return
        places, seen = self.indices, (radii > 0).float()
        half = means.new_tensor([width / 2, height / 2])
        largest = torch.maximum(self.max_radii2D[places], radii.detach().amax(0))
        self.max_radii2D.index_copy_(0, places, largest)

        def add(gradient: Tensor) -> None:
            size = (gradient * half).norm(dim=-1) * seen
            self.gradient_sum.index_add_(0, places, size.sum(0))
            self.gradient_count.index_add_(0, places, seen.sum(0))

        means.register_hook(add)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Grow, prune and fade at the steps that the config names, once each."""
        self._step = global_step
        if on_load_weights or not self.training or global_step <= int(self.changed_at):
            return
        cfg = self.cfg
        if _due(
            global_step,
            cfg.densification_interval,
            cfg.densify_from_iter,
            cfg.densify_until_iter,
        ):
            self._densify(float(C(cfg.densify_grad_threshold, epoch, global_step)), global_step)
        if _due(global_step, cfg.prune_interval, cfg.prune_from_iter, cfg.prune_until_iter):
            self._prune(global_step)
        if _due(global_step, cfg.opacity_reset_interval, 1, global_step):
            with torch.no_grad():
                self._opacity.clamp_(max=_logit(RESET_OPACITY))
        self.changed_at.fill_(global_step)

    @torch.no_grad()
    def _densify(self, threshold: float, step: int) -> None:
        mean = self.gradient_sum / self.gradient_count.clamp(min=1)
        chosen = self.alive & (mean >= threshold)
        free = (~self.alive).nonzero().squeeze(1)
        order = mean.masked_fill(~chosen, -1).argsort(descending=True, stable=True)
        old = order[: min(int(chosen.sum()), len(free))]
        new = free[: len(old)]
        for name in LEARNED:
            getattr(self, name)[new] = getattr(self, name)[old]
        self._part(old, new, step)
        self.alive[new] = True
        self._forget()

    def _part(self, old: Tensor, new: Tensor, step: int) -> None:
        """Move a splat and its copy apart; shrink the large ones, thin out the small ones."""
        scale, axis = self._scaling[old].exp().max(dim=-1)
        directions = rotation_matrices(self._rotation[old])
        longest = directions.gather(2, axis[:, None, None].expand(-1, 3, 1)).squeeze(-1)
        large = scale > float(C(self.cfg.split_thresh, 0, step))
        apart = (1 - SPLIT_SHRINK**-2) ** 0.5 * scale[:, None] * longest * large[:, None]
        self._xyz[old] -= apart
        self._xyz[new] += apart
        shrink = torch.zeros_like(self._scaling[old])
        shrink.scatter_(1, axis[:, None], float(np.log(SPLIT_SHRINK)))
        opacity = self._opacity[old].sigmoid().clamp(max=CLONE_OPACITY_LIMIT)
        thinner = torch.logit(1 - (1 - opacity).sqrt(), eps=1e-6)
        for places in (old, new):
            self._scaling[places] -= shrink * large[:, None]
            self._opacity[places] = torch.where(large[:, None], self._opacity[places], thinner)

    @torch.no_grad()
    def _prune(self, step: int) -> None:
        least = float(C(self.cfg.min_opac_prune, 0, step))
        widest = float(C(self.cfg.radii2d_thresh, 0, step))
        kept = self.alive & (self._opacity.sigmoid().squeeze(1) >= least)
        kept &= self.max_radii2D <= widest
        for name in LEARNED:
            kept &= getattr(self, name).flatten(1).isfinite().all(dim=1)
        if not kept.any():
            expected = f"splats above min_opac_prune = {least:g} (a lower rate, or more opacity)"
            raise InputError(f"training step {step}", "splats", "none left", expected)
        self.alive.copy_(kept)
        self.max_radii2D.zero_()

    def _forget(self) -> None:
        self.gradient_sum.zero_()
        self.gradient_count.zero_()

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """``density`` (..., 1): the sum of the Gaussians at world positions (..., 3)."""
        return {"density": self.forward_level(points)}

    def forward_level(self, points: Tensor) -> Tensor:
        """Opacity-weighted sum of the Gaussians (..., 1) at world positions (..., 3)."""
        level = level_at(self.splats()[0], points.reshape(-1, 3))
        return level.view(*points.shape[:-1], 1)

    def _level_on_lattice(self, box: Tensor) -> Tensor:
        splats, n = self.splats()[0], self.cfg.isosurface_resolution
        if self.surface_occlusion is not None:
            return level_on_lattice(as_matter(splats), box, n)
        level = level_on_lattice(splats, box, n)
        if self.cfg.isosurface_threshold == "auto":
            return level
        return _filled(level, float(self.cfg.isosurface_threshold))

    @torch.no_grad()
    def solid(self, points: Tensor) -> Tensor:
        """Which world positions (P, 3) are inside the surface, holes filled: by a lattice's."""
        if self.surface_occlusion is not None:
            return super().solid(points)
        level = self._level_on_lattice(self.bbox)
        unit = contract_to_unit_box(points, self.bbox)
        return at_points(level, unit) > self._threshold(level)

    @torch.no_grad()
    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """``albedo`` (..., 3) at world positions: the mean colour of the splats nearest to them."""
        from scipy.spatial import cKDTree

        splats, colours = self.splats()
        flat = points.reshape(-1, 3).cpu().numpy()
        near = min(NEIGHBOURS, len(colours))
        distance, index = cKDTree(splats.means.cpu().numpy()).query(flat, k=[*range(1, near + 1)])
        nearest = torch.from_numpy(index).to(colours.device)
        weights = torch.from_numpy(1 / (distance + 1e-6)).to(colours) * splats.opacities[nearest]
        mean = (colours[nearest] * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        return {"albedo": mean.clamp(0, 1).view(*points.shape[:-1], 3)}


def _due(step: int, interval: int, first: int, last: int) -> bool:
    return interval > 0 and step > 0 and step % interval == 0 and first <= step <= last


def _logit(value: float) -> float:
    return float(np.log(value / (1 - value)))


def _round_splats(points: Tensor, colours: Tensor, opacity: float) -> dict[str, Tensor]:
    """Stored form of round splats at points (n, 3), as wide as the way to the next ones."""
    from scipy.spatial import cKDTree

    n = len(points)
    near = min(NEIGHBOURS, n - 1)
    size = np.full(n, 0.1)
    if near:
        size = cKDTree(points.numpy()).query(points.numpy(), k=near + 1)[0][:, 1:].mean(1)
    scale = torch.from_numpy(size).to(points).clamp(min=LEAST_SCALE)
    return {
        "_xyz": points,
        "_features_dc": ((colours - 0.5) / SH_C0)[:, None],
        "_scaling": scale.log()[:, None].expand(-1, 3),
        "_rotation": torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(n, -1),
        "_opacity": torch.full((n, 1), _logit(opacity)),
    }


def _points_on(mesh: Any, n: int) -> Tensor:
    """``n`` points evenly on a surface, the same at each call, on the mesh's device."""
    import trimesh

    surface = trimesh.Trimesh(
        mesh.v_pos.detach().cpu().numpy(), mesh.t_pos_idx.cpu().numpy(), process=False
    )
    points, _ = trimesh.sample.sample_surface(surface, n, seed=0)
    return torch.from_numpy(np.asarray(points)).to(mesh.v_pos)


def _filled(level: Tensor, threshold: float) -> Tensor:
    """Raise what is enclosed by values above the threshold: a shell of splats is a solid object."""
    from scipy.ndimage import binary_fill_holes

    solid = (level > threshold).cpu().numpy()
    holes = torch.from_numpy(binary_fill_holes(solid) & ~solid).to(level.device)
    return torch.where(holes, level.amax(), level)
