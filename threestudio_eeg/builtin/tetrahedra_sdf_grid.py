"""``tetrahedra-sdf-grid``: a mesh from signed distances on a deformable tetrahedral grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.networks import get_encoding, get_mlp

from .base import BaseModule
from .geometry import ImplicitVolume
from .isosurface import ImplicitGeometry, Mesh, contract_to_unit_box, remove_small_components
from .registry import name_of, register
from .shapes import distance_from
from .surface_mesh import SurfaceMesh
from .tetrahedra import CubeGrid, FileGrid, TetrahedralGrid, marching_tetrahedra

SURFACE_POINTS = 200_000
PLANE_REACH = 5
"""How many distances between surface points the plane of the nearest one stands for it."""
NET = ("encoding", "feature_network")


@register("tetrahedra-sdf-grid")
class TetrahedraSDFGrid(BaseModule):
    """A mesh by marching tetrahedra, coloured by a grid encoding (DMTet, Shen et al. 2021).

    ``sdf`` is negative inside. Name, fields and weights are threestudio's. Its grid files fit when
    one is given as ``tets_path``; without one, the grid is a lattice of ``isosurface_resolution``
    cubes a side, each of six tetrahedra.
    """

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0
        isosurface_resolution: int = 128
        isosurface_deformable_grid: bool = True
        isosurface_remove_outliers: bool = False
        isosurface_outlier_n_faces_threshold: Any = 0.01
        n_input_dims: int = 3
        n_feature_dims: int = 3
        pos_encoding_config: dict = field(
            default_factory=lambda: ImplicitVolume.Config().pos_encoding_config
        )
        mlp_network_config: dict = field(
            default_factory=lambda: ImplicitVolume.Config().mlp_network_config
        )
        shape_init: str | None = None
        shape_init_params: Any = None
        shape_init_mesh_up: str = "+z"
        shape_init_mesh_front: str = "+x"
        force_shape_init: bool = False
        geometry_only: bool = False
        fix_geometry: bool = False
        tets_path: str | None = None

    bbox: Tensor
    isosurface_bbox: Tensor
    sdf: Tensor
    deformation: Tensor | None
    where = "tetrahedra-sdf-grid"

    def configure(self, *args: Any, **kwargs: Any) -> None:
        cfg, r = self.cfg, self.cfg.radius
        if cfg.isosurface_resolution < 1:
            found = cfg.isosurface_resolution
            raise InputError(self.where, "isosurface_resolution", found, "a positive number")
        box = torch.tensor([[-r, -r, -r], [r, r, r]], dtype=torch.float32)
        self.register_buffer("bbox", box)
        self.register_buffer("isosurface_bbox", box.clone())
        self.grid: TetrahedralGrid = (
            FileGrid(cfg.tets_path, cfg.isosurface_resolution)
            if cfg.tets_path
            else CubeGrid(cfg.isosurface_resolution)
        )
        self._hold("sdf", torch.zeros(len(self.grid.vertices), 1))
        if cfg.isosurface_deformable_grid:
            self._hold("deformation", torch.zeros_like(self.grid.vertices))
        else:
            self.deformation = None
        if not cfg.geometry_only:
            self.encoding = get_encoding(cfg.n_input_dims, cfg.pos_encoding_config)
            width = self.encoding.n_output_dims
            self.feature_network = get_mlp(width, cfg.n_feature_dims, cfg.mlp_network_config)
        self._kept: SurfaceMesh | None = None

    def _hold(self, name: str, values: Tensor) -> None:
        """Keep a tensor as a parameter, or as a buffer when the geometry is fixed."""
        if self.cfg.fix_geometry:
            self.register_buffer(name, values)
        else:
            self.register_parameter(name, nn.Parameter(values))

    @torch.no_grad()
    def initialize_shape(self) -> None:
        """Set the distances to ``shape_init``, unless weights were loaded."""
        cfg = self.cfg
        if cfg.shape_init is None or (cfg.weights is not None and not cfg.force_shape_init):
            return
        distance = distance_from(cfg.shape_init, cfg.shape_init_params, self.where, "shape_init")
        self.sdf.copy_(distance(self.places()))
        self._kept = None

    def places(self) -> Tensor:
        """Where the grid's vertices are, without deformation, (V, 3) in the world."""
        return self._to_world(self.grid.vertices)

    def _to_world(self, unit: Tensor) -> Tensor:
        low, high = self.isosurface_bbox
        return unit * (high - low) + low

    def surface(self) -> SurfaceMesh:
        """The mesh, with gradients to ``sdf`` and ``deformation``; kept when it is fixed.

        Raises
        ------
        InputError
            When no distance is negative, or none positive.
        """
        if self.cfg.fix_geometry and self._kept is not None:
            return self._kept
        unit = self.grid.vertices
        if self.deformation is not None:
            unit = unit + self.grid.slack * self.deformation.tanh()
        self._check_sign()
        v_pos, faces = marching_tetrahedra(self.grid, self._to_world(unit), self.sdf.squeeze(1))
        mesh: Mesh = SurfaceMesh(v_pos, faces)
        if self.cfg.isosurface_remove_outliers:
            mesh = remove_small_components(mesh, self.cfg.isosurface_outlier_n_faces_threshold)
        self._kept = SurfaceMesh(mesh.v_pos, mesh.t_pos_idx)
        return self._kept

    def _check_sign(self) -> None:
        low, high = (float(value) for value in self.sdf.detach().aminmax())
        if low < 0 <= high:
            return
        found = f"an empty isosurface: distances from {low:.4g} to {high:.4g}"
        expected = "both signs (shape_init, geometry_convert_from, or a lower learning rate)"
        raise InputError(self.where, "sdf", found, expected)

    def isosurface(self) -> SurfaceMesh:
        """The mesh, as :meth:`surface`."""
        return self.surface()

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """``features`` (..., n_feature_dims) at world positions (..., 3); the mesh has normals."""
        return {} if output_normal else self.export(points)

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """``features`` (..., n_feature_dims) at world positions, nothing for a bare shape."""
        if self.cfg.geometry_only or self.cfg.n_feature_dims == 0:
            return {}
        flat = contract_to_unit_box(points, self.bbox).reshape(-1, self.cfg.n_input_dims)
        features = self.feature_network(self.encoding(flat))
        return {"features": features.view(*points.shape[:-1], features.shape[-1])}

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the encoding's levels; look at the distances again after weights were loaded."""
        if not self.cfg.geometry_only:
            self.encoding.update_step(epoch, global_step, on_load_weights)
        if on_load_weights:
            self._kept = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    @classmethod
    def create_from(cls, other: Any, cfg: Any = None, copy_net: bool = True) -> TetrahedraSDFGrid:
        """A grid that holds another geometry's surface.

        Distances are those of the surface by marching cubes, signed by the other's level; so an
        opacity field, whose values are no distances, starts as well as a signed distance field.

        Parameters
        ----------
        other
            This class with the same grid, or a geometry with ``forward_level``.
        copy_net
            Take the encoding and the colours along, where both have the same ones.

        Raises
        ------
        InputError
            When the other has no surface at its threshold, or cannot be converted.
        """
        grid = cls(cfg)
        if isinstance(other, TetrahedraSDFGrid):
            grid._copy_grid(other)
        elif isinstance(other, ImplicitGeometry):
            grid._sample(other)
        else:
            found = name_of(type(other))
            raise InputError("system", "geometry_convert_from", found, "a field or a grid")
        if copy_net and not grid.cfg.geometry_only:
            grid._copy_net(other)
        return grid

    @torch.no_grad()
    def _copy_grid(self, other: TetrahedraSDFGrid) -> None:
        if len(self.sdf) != len(other.sdf):
            found, expected = self.cfg.isosurface_resolution, other.cfg.isosurface_resolution
            raise InputError(self.where, "isosurface_resolution", found, f"{expected}, as before")
        self.isosurface_bbox.copy_(other.isosurface_bbox)
        self.sdf.copy_(other.sdf)
        if self.deformation is not None and other.deformation is not None:
            self.deformation.copy_(other.deformation)

    @torch.no_grad()
    def _sample(self, other: ImplicitGeometry) -> None:
        mesh = other.isosurface()
        low, high = mesh.v_pos.amin(0), mesh.v_pos.amax(0)
        margin = 2 * (high - low).amax() / self.cfg.isosurface_resolution
        box = torch.stack((low - margin, high + margin)).to(self.isosurface_bbox)
        self.isosurface_bbox.copy_(box)
        places = self.places()
        distance = _distance_to(mesh, places)
        solid = other.solid(places.to(other.bbox)).to(distance.device)
        self.sdf.copy_(torch.where(solid, -distance, distance)[:, None])

    def _copy_net(self, other: Any) -> None:
        for name in NET:
            own, given = getattr(self, name), getattr(other, name, None)
            if given is None:
                raise InputError(
                    "system",
                    "geometry_convert_inherit_texture",
                    f"true, from {name_of(type(other))}",
                    "false, or a geometry with a grid encoding and colours",
                )
            try:
                own.load_state_dict(given.state_dict())
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:160]
                expected = f"the {name} of the run converted from"
                raise InputError(self.where, name, reason, expected) from error


def _distance_to(mesh: Mesh, points: Tensor) -> Tensor:
    """Distance (P,) of points (P, 3) from a surface, by many points on it and their planes."""
    import trimesh
    from scipy.spatial import cKDTree

    surface = trimesh.Trimesh(mesh.v_pos.cpu().numpy(), mesh.t_pos_idx.cpu().numpy(), process=False)
    on, face = trimesh.sample.sample_surface(surface, SURFACE_POINTS, seed=0)
    places = points.cpu().numpy()
    distance, nearest = cKDTree(np.asarray(on)).query(places)
    offset = places - np.asarray(on)[nearest]
    from_plane = np.abs((offset * surface.face_normals[np.asarray(face)[nearest]]).sum(-1))
    near = distance < PLANE_REACH * np.sqrt(surface.area / SURFACE_POINTS)
    return torch.from_numpy(np.where(near, from_plane, distance)).to(points)
