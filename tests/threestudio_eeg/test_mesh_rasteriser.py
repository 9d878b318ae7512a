"""Meshes as pictures: what is seen, how edges are blended, and gradients to the vertices."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import trimesh

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.cameras import c2w_from_angles, camera_batch
from threestudio_eeg.builtin.mesh_rasteriser import TorchRaster, to_clip
from threestudio_eeg.builtin.nvdiff_rasterizer import NvdiffRaster, choose_backend
from threestudio_eeg.builtin.surface_mesh import SurfaceMesh


def flat_mesh(points, faces):
    """A mesh in the plane z = 0 that the identity shows: clip x, y in [-1, 1], y down."""
    v_pos = torch.tensor(points, dtype=torch.float64)
    v_pos = torch.cat((v_pos, torch.zeros_like(v_pos[:, :1])), -1) if v_pos.shape[1] == 2 else v_pos
    return SurfaceMesh(v_pos, torch.tensor(faces))


def raster_of(mesh, height=16, width=16, mvp=None):
    mvp = torch.eye(4, dtype=mesh.v_pos.dtype)[None] if mvp is None else mvp
    return TorchRaster(mesh, to_clip(mesh.v_pos, mvp), height, width)


def silhouette(mesh, height=16, width=16, mvp=None):
    raster = raster_of(mesh, height, width, mvp)
    return raster.antialias(raster.covered.to(mesh.v_pos)[..., None])[..., 0]


def ball(radius=0.5, subdivisions=3):
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.tensor(sphere.vertices), torch.tensor(sphere.faces)


def view(size, azimuth=20.0):
    c2w = c2w_from_angles(torch.tensor([10.0]), torch.tensor([azimuth]), torch.tensor([2.0]))
    return camera_batch(c2w, torch.deg2rad(torch.tensor([40.0])), size, size)


QUAD = [[0, 1, 2], [0, 2, 3]]


def test_a_shifted_square_covers_its_area():
    corners = [[-0.51, -0.37], [0.44, -0.37], [0.44, 0.62], [-0.51, 0.62]]
    opacity = silhouette(flat_mesh(corners, QUAD))[0]
    assert opacity.sum().item() == pytest.approx(0.95 * 0.99 * 64, rel=0.02)
    inside = (opacity[1:] > 0) & (opacity[1:] < 1)
    assert inside.any()
    # The left side is at pixel 3.92: pixel 3 is covered by 0.08.
    assert opacity[8, 3].item() == pytest.approx(0.08, abs=1e-6)
    assert opacity[8, 2] == 0
    assert opacity[8, 4] == 1


def test_attributes_are_perspective_correct():
    batch = view(32)
    points, faces = ball()
    mesh = SurfaceMesh(points.float(), faces)
    raster = TorchRaster(mesh, to_clip(mesh.v_pos, batch["mvp_mtx"]), 32, 32)
    seen = raster.interpolate(mesh.v_pos)
    _, rows, columns = raster.covered.nonzero().unbind(1)
    towards = torch.nn.functional.normalize(seen - batch["camera_positions"], dim=-1)
    torch.testing.assert_close(towards, batch["rays_d"][0, rows, columns], atol=1e-4, rtol=0)
    assert (seen.norm(dim=-1) - 0.5).abs().max() < 0.01
    assert ((towards * seen).sum(-1) < 0).all(), "the near side is seen"


def test_the_nearest_surface_hides_the_others():
    far = [[-0.9, -0.9, 0.5], [0.9, -0.9, 0.5], [0.9, 0.9, 0.5], [-0.9, 0.9, 0.5]]
    near = [[-0.3, -0.3, -0.5], [0.3, -0.3, -0.5], [0.3, 0.3, -0.5], [-0.3, 0.3, -0.5]]
    mesh = flat_mesh(far + near, [*QUAD, *([a + 4 for a in face] for face in QUAD)])
    raster = raster_of(mesh)
    colour = torch.tensor([[0.0]] * 4 + [[1.0]] * 4, dtype=torch.float64)
    picture = torch.zeros(1, 16, 16, 1, dtype=torch.float64)
    picture[raster.covered] = raster.interpolate(colour)
    blended = raster.antialias(picture)[0, :, :, 0]
    assert blended[8, 8] == 1
    assert blended[8, 1] == 0
    # The near square ends at pixel 5.6 on the left: the edge shows through over the far one.
    assert blended[8, 5].item() == pytest.approx(0.4, abs=1e-6)
    opacity = silhouette(mesh)[0]
    assert opacity[8, 5] == 1


@pytest.mark.parametrize("vertex", range(4))
def test_gradients_of_a_square_are_those_of_finite_differences(vertex):
    corners = torch.tensor([[-0.52, -0.31], [0.47, -0.41], [0.53, 0.48], [-0.43, 0.57]])
    corners = torch.cat((corners, torch.zeros(4, 1)), -1).double()
    generator = torch.Generator().manual_seed(vertex)
    weights = torch.rand(16, 16, generator=generator, dtype=torch.float64)

    def loss(points):
        return (silhouette(SurfaceMesh(points, torch.tensor(QUAD)))[0] * weights).sum()

    points = corners.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(points), points)
    for axis in range(2):
        step = torch.zeros_like(corners)
        step[vertex, axis] = 1e-6
        by_hand = (loss(corners + step) - loss(corners - step)) / 2e-6
        assert gradient[vertex, axis].item() == pytest.approx(by_hand.item(), abs=1e-4)
        assert abs(by_hand.item()) > 1e-3


def test_the_gradient_of_a_balls_size_is_that_of_its_disc():
    """Triangles smaller than a pixel: the silhouette still knows which way the ball grows."""
    points, faces = ball(subdivisions=4)
    mvp = view(24)["mvp_mtx"].double()
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    area = silhouette(SurfaceMesh(points * scale, faces), 24, 24, mvp).sum()
    (gradient,) = torch.autograd.grad(area, scale)
    with torch.no_grad():
        grown, shrunk = (
            silhouette(SurfaceMesh(points * s, faces), 24, 24, mvp).sum() for s in (1.1, 0.9)
        )
    assert gradient.item() == pytest.approx(((grown - shrunk) / 0.2).item(), rel=0.05)


def test_a_ball_moves_to_where_the_picture_shows_it():
    points, faces = ball(0.3, 2)
    mvp = view(20)["mvp_mtx"].double()
    target = silhouette(SurfaceMesh(points + torch.tensor([0.0, 0.15, 0.1]), faces), 20, 20, mvp)
    place = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([place], lr=0.02)
    for _ in range(60):
        picture = silhouette(SurfaceMesh(points + place, faces), 20, 20, mvp)
        loss = (picture - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02 * target.sum()


def test_normals_and_smoothness_of_a_ball():
    points, faces = ball()
    mesh = SurfaceMesh(points, faces)
    torch.testing.assert_close(mesh.v_nrm, points / 0.5, atol=0.02, rtol=0)
    assert len(mesh.edges.vertices) == 3 * len(faces) // 2
    assert (mesh.edges.faces >= 0).all()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(points.shape, generator=generator, dtype=points.dtype) * 0.02
    rough = SurfaceMesh(points + noise, faces)
    assert rough.normal_consistency() > 3 * mesh.normal_consistency()
    assert rough.laplacian() > 3 * mesh.laplacian()


def test_smoothness_by_hand():
    corners = [[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    mesh = flat_mesh(corners, QUAD)
    assert mesh.normal_consistency().item() == pytest.approx(0, abs=1e-12)
    # Corners 0 and 2 have three neighbours, 1 and 3 two: their means are (2/3, 2/3) and (1/2, 1/2).
    expected = (2 * (2 * (2 / 3) ** 2) ** 0.5 + 2 * 0.5**0.5) / 4
    assert mesh.laplacian().item() == pytest.approx(expected)
    assert mesh.edges.faces[:, 1].tolist().count(-1) == 4


def test_nothing_in_the_picture():
    mesh = flat_mesh([[3.0, 3], [4, 3], [4, 4], [3, 4]], QUAD)
    raster = raster_of(mesh)
    assert not raster.covered.any()
    assert raster.interpolate(mesh.v_pos).shape == (0, 3)
    assert not silhouette(mesh).any()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("nvdiffrast", "nvdiffrast, which is (not installed|for CUDA)"),
        ("opengl", "backend: found opengl"),
    ],
)
def test_a_backend_that_cannot_run_is_named(wanted, words):
    with pytest.raises(InputError, match=words):
        choose_backend(wanted, torch.device("cpu"))
    assert choose_backend(None, torch.device("cpu")) == "torch"


class FakeNvdiffrast:
    """nvdiffrast's documented interface over the rasteriser in torch."""

    def rasterize(self, context, pos, tri, resolution):
        assert (context, pos.dtype, tri.dtype) == ("context", torch.float32, torch.int32)
        self.raster = TorchRaster(self.mesh, pos, *resolution)
        covered = self.raster.covered
        depth = torch.where(covered, self.raster.depth, 0.0)
        empty = torch.zeros_like(depth)
        fragments = torch.stack((empty, empty, depth, covered.float()), dim=-1)
        return fragments, None

    def interpolate(self, attr, rast, tri):
        assert attr.dim() == 3
        assert attr.is_contiguous()
        picture = torch.zeros(*rast.shape[:3], attr.shape[-1])
        picture[self.raster.covered] = self.raster.interpolate(attr[0])
        return picture, None


def test_nvdiffrast_is_asked_for_the_same_picture(monkeypatch):
    points, faces = ball(subdivisions=1)
    mesh = SurfaceMesh(points.float(), faces)
    fake = FakeNvdiffrast()
    fake.mesh = mesh
    monkeypatch.setitem(sys.modules, "nvdiffrast", ModuleType("nvdiffrast"))
    torch_part = SimpleNamespace(rasterize=fake.rasterize, interpolate=fake.interpolate)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", torch_part)
    clip = to_clip(mesh.v_pos, view(16)["mvp_mtx"])
    ours = TorchRaster(mesh, clip, 16, 12)
    theirs = NvdiffRaster(mesh, clip, 16, 12, "context")
    assert torch.equal(ours.covered, theirs.covered)
    assert torch.equal(ours.interpolate(mesh.v_nrm), theirs.interpolate(mesh.v_nrm))
    picture = torch.rand(1, 16, 12, 3)
    assert torch.equal(ours.antialias(picture), theirs.antialias(picture))


@pytest.mark.gpu
def test_nvdiffrast_renders_as_torch_does():
    """Triangles as small as pixels; nvdiffrast moves corners to the nearest 1/16 of a pixel."""
    nvdiffrast = pytest.importorskip("nvdiffrast.torch")
    points, faces = ball(subdivisions=4)
    mesh = SurfaceMesh(points.float().cuda().requires_grad_(), faces.cuda())
    clip = to_clip(mesh.v_pos, view(64)["mvp_mtx"].cuda())
    context = nvdiffrast.RasterizeCudaContext()
    rasters = TorchRaster(mesh, clip, 64, 64), NvdiffRaster(mesh, clip, 64, 64, context)
    assert (rasters[0].covered != rasters[1].covered).float().mean() < 1e-3
    gradients = []
    for raster in rasters:
        opacity = raster.antialias(raster.covered.float()[..., None])
        gradients.append(torch.autograd.grad(opacity.sum(), mesh.v_pos, retain_graph=True)[0])
    # the area's finite difference; nvdiffrast's own antialiasing gave a third of it on an H200
    for gradient in gradients:
        assert (gradient * mesh.v_pos).sum().item() == pytest.approx(3453, rel=0.02)
