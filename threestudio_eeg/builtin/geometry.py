"""``implicit-volume``: density and features of space, by a grid encoding and small networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError
from threestudio_eeg.neural_fields.networks import get_activation, get_encoding, get_mlp

from .base import BaseModule
from .registry import register

NORMAL_TYPES = (
    None,
    "finite_difference",
    "finite_difference_laplacian",
    "pred",
    "analytic",
)
ISOSURFACE_METHODS = ("mt", "mc-cpu")
QUERY_CHUNK = 1 << 18
COARSE_TO_FINE_MARGIN = 0.1
AUTO_THRESHOLD_FLOOR = 1e-5


@dataclass
class Mesh:
    """Triangles: ``v_pos`` (V, 3) in the world, ``t_pos_idx`` (T, 3), counter-clockwise outside."""

    v_pos: Tensor
    t_pos_idx: Tensor


def contract_to_unit_box(points: Tensor, bbox: Tensor) -> Tensor:
    """Map the box (2, 3) to [0, 1]."""
    return (points - bbox[0]) / (bbox[1] - bbox[0])


@register("implicit-volume")
class ImplicitVolume(BaseModule):
    """Density and features at points of a cube of half side ``radius``.

    The density is ``activation(network(encoding(x)) + bias(x))``; a blob as bias starts the object
    in the middle (DreamFusion, Magic3D).
    """

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0
        isosurface: bool = True
        isosurface_method: str = "mt"
        isosurface_resolution: int = 128
        isosurface_threshold: Any = 25.0
        isosurface_chunk: int = 0
        isosurface_coarse_to_fine: bool = True
        isosurface_deformable_grid: bool = False
        isosurface_remove_outliers: bool = True
        isosurface_outlier_n_faces_threshold: Any = 0.01

        n_input_dims: int = 3
        n_feature_dims: int = 3
        density_activation: str | None = "softplus"
        density_bias: Any = "blob_magic3d"
        density_blob_scale: float = 10.0
        density_blob_std: float = 0.5
        pos_encoding_config: dict = field(
            default_factory=lambda: {
                "otype": "HashGrid",
                "n_levels": 16,
                "n_features_per_level": 2,
                "log2_hashmap_size": 19,
                "base_resolution": 16,
                "per_level_scale": 1.447269237440378,
            }
        )
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "output_activation": "none",
                "n_neurons": 64,
                "n_hidden_layers": 1,
            }
        )
        normal_type: str | None = "finite_difference"
        finite_difference_normal_eps: float = 0.01
        anneal_density_blob_std_config: dict | None = None

    bbox: Tensor

    def configure(self, *args: Any, **kwargs: Any) -> None:
        self._check_config()
        cfg = self.cfg
        r = cfg.radius
        self.register_buffer("bbox", torch.tensor([[-r, -r, -r], [r, r, r]], dtype=torch.float32))
        self.encoding = get_encoding(cfg.n_input_dims, cfg.pos_encoding_config)
        width = self.encoding.n_output_dims
        self.density_network = get_mlp(width, 1, cfg.mlp_network_config)
        if cfg.n_feature_dims > 0:
            self.feature_network = get_mlp(width, cfg.n_feature_dims, cfg.mlp_network_config)
        if cfg.normal_type == "pred":
            self.normal_network = get_mlp(width, 3, cfg.mlp_network_config)
        self.density_activation = get_activation(cfg.density_activation)
        self.density_blob_std: float = cfg.density_blob_std

    def _check_config(self) -> None:
        cfg, where = self.cfg, "implicit-volume"
        if cfg.normal_type not in NORMAL_TYPES:
            expected = f"one of {', '.join(str(t or 'null') for t in NORMAL_TYPES)}"
            raise InputError(where, "normal_type", cfg.normal_type, expected)
        if cfg.isosurface_method not in ISOSURFACE_METHODS:
            expected = f"one of {', '.join(ISOSURFACE_METHODS)}"
            raise InputError(where, "isosurface_method", cfg.isosurface_method, expected)
        if cfg.isosurface_deformable_grid:
            raise InputError(where, "isosurface_deformable_grid", True, "false on this host")
        bias = cfg.density_bias
        if isinstance(bias, str) and bias not in ("blob_magic3d", "blob_dreamfusion"):
            expected = "a number, blob_magic3d or blob_dreamfusion"
            raise InputError(where, "density_bias", bias, expected)
        threshold = cfg.isosurface_threshold
        if isinstance(threshold, str) and threshold != "auto":
            raise InputError(where, "isosurface_threshold", threshold, "a number or auto")

    def density_bias(self, points: Tensor) -> Tensor | float:
        """Bias of the raw density at points (N, 3) of the world: (N, 1), or a number."""
        cfg = self.cfg
        if not isinstance(cfg.density_bias, str):
            return float(cfg.density_bias)
        square = (points**2).sum(dim=-1, keepdim=True)
        if cfg.density_bias == "blob_dreamfusion":
            return cfg.density_blob_scale * torch.exp(-0.5 * square / self.density_blob_std**2)
        return cfg.density_blob_scale * (1 - torch.sqrt(square) / self.density_blob_std)

    def _encode(self, points: Tensor) -> Tensor:
        encoded: Tensor = self.encoding(contract_to_unit_box(points, self.bbox))
        return encoded

    def _density(self, points: Tensor, encoded: Tensor) -> Tensor:
        raw = self.density_network(encoded) + self.density_bias(points)
        return self.density_activation(raw)

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """Evaluate the field.

        Parameters
        ----------
        points
            World positions, (..., 3).
        output_normal
            Whether to add ``normal`` and ``shading_normal``.

        Returns
        -------
        dict
            ``density`` (..., 1), ``features`` (..., n_feature_dims), and the normals (..., 3).
        """
        shape = points.shape[:-1]
        flat = points.reshape(-1, self.cfg.n_input_dims)
        if output_normal and self.cfg.normal_type == "analytic":
            output = self._forward_analytic(flat)
        else:
            output, encoded = self._forward_fields(flat)
            if output_normal and self.cfg.normal_type is not None:
                output["normal"] = self._normal(flat, output["density"], encoded)
        if "normal" in output:
            output["shading_normal"] = output["normal"]
        return {name: value.view(*shape, value.shape[-1]) for name, value in output.items()}

    def _forward_fields(self, points: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        encoded = self._encode(points)
        output = {"density": self._density(points, encoded)}
        if self.cfg.n_feature_dims > 0:
            output["features"] = self.feature_network(encoded)
        return output, encoded

    def _forward_analytic(self, points: Tensor) -> dict[str, Tensor]:
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.detach().requires_grad_() if not points.requires_grad else points
            output, _ = self._forward_fields(points)
            density = output["density"]
            (slope,) = torch.autograd.grad(
                density, points, torch.ones_like(density), create_graph=keep_graph
            )
            output["normal"] = -F.normalize(slope, dim=-1)
        return output if keep_graph else {name: value.detach() for name, value in output.items()}

    def _normal(self, points: Tensor, density: Tensor, encoded: Tensor) -> Tensor:
        if self.cfg.normal_type == "pred":
            return F.normalize(self.normal_network(encoded), dim=-1)
        eps = self.cfg.finite_difference_normal_eps
        offsets = eps * torch.eye(3, device=points.device, dtype=points.dtype)
        ahead = self._density_beside(points, offsets)
        if self.cfg.normal_type == "finite_difference_laplacian":
            slope = 0.5 * (ahead - self._density_beside(points, -offsets)) / eps
        else:
            slope = (ahead - density) / eps
        return -F.normalize(slope, dim=-1)

    def _density_beside(self, points: Tensor, offsets: Tensor) -> Tensor:
        """Densities (N, 3) at points (N, 3) moved by each offset (3, 3), kept inside the cube."""
        r = self.cfg.radius
        moved = (points[:, None] + offsets).clamp(-r, r)
        return self.forward_density(moved).squeeze(-1)

    def forward_density(self, points: Tensor) -> Tensor:
        """Density (..., 1) at world positions (..., 3)."""
        flat = points.reshape(-1, self.cfg.n_input_dims)
        return self._density(flat, self._encode(flat)).view(*points.shape[:-1], 1)

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """Features at world positions, for texturing: ``features`` (..., n_feature_dims)."""
        if self.cfg.n_feature_dims == 0:
            return {}
        flat = points.reshape(-1, self.cfg.n_input_dims)
        features = self.feature_network(self._encode(flat))
        return {"features": features.view(*points.shape[:-1], features.shape[-1])}

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Follow the annealing of the blob and of the encoding."""
        self.encoding.update_step(epoch, global_step, on_load_weights)
        plan = self.cfg.anneal_density_blob_std_config
        if plan is not None and global_step >= plan["min_anneal_step"]:
            span = plan["max_anneal_step"] - plan["min_anneal_step"]
            passed = min((global_step - plan["min_anneal_step"]) / max(span, 1), 1.0)
            self.density_blob_std = (
                plan["start_val"] + (plan["end_val"] - plan["start_val"]) * passed
            )

    @torch.no_grad()
    def isosurface(self) -> Mesh:
        """Surface where the density crosses ``isosurface_threshold``, by marching cubes.

        ``mt`` is answered by marching cubes too: this host keeps no tetrahedra.

        Raises
        ------
        InputError
            When nothing crosses the threshold, or isosurfaces are switched off.
        """
        if not self.cfg.isosurface:
            raise InputError("implicit-volume", "isosurface", False, "true, to extract a mesh")
        mesh = self._isosurface(self.bbox)
        if self.cfg.isosurface_coarse_to_fine:
            low, high = mesh.v_pos.amin(0), mesh.v_pos.amax(0)
            margin = (high - low) * COARSE_TO_FINE_MARGIN
            box = torch.stack((low - margin, high + margin))
            mesh = self._isosurface(box.clamp(-self.cfg.radius, self.cfg.radius))
        if self.cfg.isosurface_remove_outliers:
            mesh = remove_small_components(mesh, self.cfg.isosurface_outlier_n_faces_threshold)
        return mesh

    def _isosurface(self, box: Tensor) -> Mesh:
        density = self._density_on_lattice(box)
        threshold = self.cfg.isosurface_threshold
        if threshold == "auto":
            above = density[density > AUTO_THRESHOLD_FLOOR]
            threshold = float(above.mean()) if len(above) else AUTO_THRESHOLD_FLOOR
        low, high = float(density.min()), float(density.max())
        if not low <= high:
            raise InputError("implicit-volume", "density", "NaN", "finite values")
        if high <= threshold:
            found = f"{threshold:g}, with densities from {low:.4g} to {high:.4g}"
            expected = f"below {high:.4g}, or a field trained for longer (empty isosurface)"
            raise InputError("implicit-volume", "isosurface_threshold", found, expected)
        vertices, faces = marching_cubes(density.cpu().numpy(), float(threshold))
        v_pos = torch.from_numpy(vertices).to(box) * (box[1] - box[0]) + box[0]
        return Mesh(v_pos, torch.from_numpy(faces).to(box.device))

    def _density_on_lattice(self, box: Tensor) -> Tensor:
        """Densities (n, n, n) on a lattice from corner to corner of ``box``."""
        n = self.cfg.isosurface_resolution
        unit = torch.linspace(0, 1, n, device=box.device)
        lattice = torch.stack(torch.meshgrid(unit, unit, unit, indexing="ij"), dim=-1).view(-1, 3)
        points = lattice * (box[1] - box[0]) + box[0]
        chunk = self.cfg.isosurface_chunk or QUERY_CHUNK
        values = [self.forward_density(part) for part in points.split(chunk)]
        return torch.cat(values).view(n, n, n)


def marching_cubes(volume: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Closed surface of ``volume > level``: vertices (V, 3) in [0, 1], triangles (T, 3).

    The surface is closed at the border of the lattice: outside counts as empty.
    """
    from skimage.measure import marching_cubes as extract

    outside = min(float(volume.min()), level - 1.0)
    padded = np.pad(volume.astype(np.float32), 1, constant_values=outside)
    vertices, faces, _, _ = extract(padded, level, gradient_direction="ascent")
    unit = (vertices - 1) / (np.array(volume.shape) - 1)
    return unit.clip(0, 1).astype(np.float32), faces.astype(np.int64)


def remove_small_components(mesh: Mesh, threshold: float | int) -> Mesh:
    """Drop connected components with few triangles.

    Parameters
    ----------
    threshold
        Smallest number of triangles kept; a float is a fraction of the largest component's number
        (1.0 keeps the largest alone).
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces = mesh.t_pos_idx.cpu().numpy()
    n_vertices = len(mesh.v_pos)
    rows, columns = faces.reshape(-1), np.roll(faces, 1, axis=1).reshape(-1)
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n_vertices, n_vertices))
    _, component = connected_components(graph, directed=False)
    sizes = np.bincount(component[faces[:, 0]])
    least = int(sizes.max() * threshold) if isinstance(threshold, float) else threshold
    kept_faces = faces[sizes[component[faces[:, 0]]] >= min(least, sizes.max())]
    kept, renumbered = np.unique(kept_faces, return_inverse=True)
    device = mesh.v_pos.device
    index = torch.from_numpy(renumbered.reshape(-1, 3)).to(device)
    return Mesh(mesh.v_pos[torch.from_numpy(kept).to(device)], index)
