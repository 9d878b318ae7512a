"""The phantom's solids: distances, meshes, pictures, and the cameras that all rooms share."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from threestudio_eeg.builtin.cameras import c2w_from_angles, get_ray_directions, get_rays
from threestudio_eeg.phantom.categories import (
    ASYMMETRIC,
    CATEGORIES,
    COLOURS,
    N_PARAMETERS,
    build,
)
from threestudio_eeg.phantom.objects import make_instances, solids_of
from threestudio_eeg.phantom.pictures import (
    FOVY,
    MARCH_STEPS,
    Cameras,
    _sphere_interval,
    camera_rays,
    mesh_of,
    over,
    random_cameras,
    render,
    side_index,
    stimulus_cameras,
    trace,
    trace_reference,
    view_word,
)
from threestudio_eeg.phantom.solids import (
    BOX,
    CONE,
    ELLIPSOID,
    PRISM,
    RADIUS,
    TORUS,
    Part,
    Solids,
    fit,
    stack,
    towards,
)

WHITE = (1.0, 1.0, 1.0)
MIDDLE = (0.5,) * N_PARAMETERS


def solid(*parts: Part) -> Solids:
    return stack([list(parts)])


def points(n: int = 400, reach: float = 1.0, seed: int = 0) -> Tensor:
    return (torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * reach


def disc(radius: float, height: float) -> Tensor:
    r, turn = torch.meshgrid(
        torch.linspace(0, radius, 60), torch.linspace(0, 2 * math.pi, 180), indexing="ij"
    )
    flat = torch.stack([r * turn.cos(), r * turn.sin(), torch.full_like(r, height)], -1)
    return flat.view(-1, 3)


def box_surface(half: tuple[float, float, float]) -> Tensor:
    s = torch.linspace(-1, 1, 60)
    u, v = (grid.flatten() for grid in torch.meshgrid(s, s, indexing="ij"))
    faces = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            face = torch.stack([u, v], dim=1)
            faces.append(
                torch.cat([face[:, :axis], torch.full((len(u), 1), sign), face[:, axis:]], 1)
            )
    return torch.cat(faces) * torch.tensor(half)


def cone_surface(below: float, above: float, half: float) -> Tensor:
    share, turn = torch.meshgrid(
        torch.linspace(0, 1, 80), torch.linspace(0, 2 * math.pi, 180), indexing="ij"
    )
    radius = below + (above - below) * share
    side = torch.stack([radius * turn.cos(), radius * turn.sin(), half * (2 * share - 1)], -1)
    return torch.cat([side.view(-1, 3), disc(below, -half), disc(above, half)])


def torus_surface(ring: float, tube: float) -> Tensor:
    a, b = torch.meshgrid(*(torch.linspace(0, 2 * math.pi, 160),) * 2, indexing="ij")
    radius = ring + tube * b.cos()
    return torch.stack([radius * a.cos(), radius * a.sin(), tube * b.sin()], -1).view(-1, 3)


def in_box(p: Tensor) -> Tensor:
    return (p.abs() < torch.tensor([0.5, 0.3, 0.2])).all(-1)


def in_cone(p: Tensor) -> Tensor:
    radius = 0.5 + (0.2 - 0.5) * (p[:, 2] + 0.4) / 0.8
    return (p[:, 2].abs() < 0.4) & (p[:, :2].norm(dim=1) < radius)


def in_torus(p: Tensor) -> Tensor:
    return (p[:, :2].norm(dim=1) - 0.5).square() + p[:, 2].square() < 0.15**2


def in_ellipsoid(p: Tensor) -> Tensor:
    return (p / torch.tensor([0.6, 0.3, 0.45])).norm(dim=1) < 1


def in_prism(p: Tensor) -> Tensor:
    sloped = p[:, 0].abs() / 0.4 < (0.3 - p[:, 2]) / 0.6
    return sloped & (p[:, 2] > -0.3) & (p[:, 1].abs() < 0.5)


EXACT = {
    BOX: ((0.5, 0.3, 0.2, 0.0), in_box, lambda: box_surface((0.5, 0.3, 0.2))),
    CONE: ((0.5, 0.2, 0.4), in_cone, lambda: cone_surface(0.5, 0.2, 0.4)),
    TORUS: ((0.5, 0.15), in_torus, lambda: torus_surface(0.5, 0.15)),
}
BOUNDS = {
    ELLIPSOID: ((0.6, 0.3, 0.45), in_ellipsoid),
    PRISM: ((0.4, 0.3, 0.5), in_prism),
}


@pytest.mark.parametrize("kind", EXACT)
def test_exact_distances_equal_those_to_a_sampled_surface(kind):
    size, inside, surface = EXACT[kind]
    p = points()
    distance = solid(Part(kind, (0, 0, 0), size, WHITE)).distance(p[None])[0]
    nearest = torch.cdist(p, surface()).amin(1)
    torch.testing.assert_close(distance.abs(), nearest, atol=8e-3, rtol=0)
    clear = nearest > 0.01
    assert torch.equal((distance < 0)[clear], inside(p)[clear])


@pytest.mark.parametrize("kind", BOUNDS)
def test_bounds_have_the_right_sign_and_never_jump_over_the_surface(kind):
    size, inside = BOUNDS[kind]
    shape = solid(Part(kind, (0, 0, 0), size, WHITE))
    p = points(4000)
    distance = shape.distance(p[None])[0]
    assert torch.equal(distance < 0, inside(p))
    outside = distance > 0
    ahead = p[outside] - p[outside] / p[outside].norm(dim=1, keepdim=True) * (
        0.9 * distance[outside, None]
    )
    assert float(shape.distance(ahead[None]).min()) > -0.02


def test_a_part_turns_and_moves_with_its_frame():
    rotation = towards((1.0, 2.0, -0.5))
    plain = solid(Part(CONE, (0, 0, 0), (0.5, 0.2, 0.4), WHITE))
    moved = solid(Part(CONE, (0.1, -0.2, 0.3), (0.5, 0.2, 0.4), WHITE, rotation=rotation))
    p = points()
    there = p @ rotation.T + torch.tensor([0.1, -0.2, 0.3])
    torch.testing.assert_close(moved.distance(there[None]), plain.distance(p[None]))


@pytest.mark.parametrize("direction", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, -1), (1, -2, 3)])
def test_towards_is_a_rotation_of_z(direction):
    rotation = towards(direction)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-6, rtol=0)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0, abs=1e-5)
    wanted = torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float32), dim=0)
    torch.testing.assert_close(rotation[:, 2], wanted, atol=1e-6, rtol=0)


def test_cutting_leaves_a_hole_with_the_cutter_s_colour():
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    shape = solid(
        Part(BOX, (0, 0, 0), (0.4, 0.4, 0.4, 0.0), red),
        Part(CONE, (0, 0, 0.2), (0.2, 0.2, 0.4), blue, cut=True),
    )
    probe = torch.tensor([[[0, 0, 0.1], [0, 0, -0.3], [0.3, 0, 0.1], [0, 0, 0.9]]])
    assert (shape.distance(probe)[0] < 0).tolist() == [False, True, True, False]
    walls = torch.tensor([[[0.2, 0, 0.1], [0.4, 0, 0.1]]])
    _, part = shape.distance_and_part(walls)
    torch.testing.assert_close(shape.colour_at(part)[0], torch.tensor([blue, red]))


def test_padding_a_batch_changes_nothing():
    one = [Part(TORUS, (0, 0, 0), (0.5, 0.15), WHITE)]
    many = [Part(BOX, (0.1 * i, 0, 0), (0.1, 0.1, 0.1, 0.0), WHITE) for i in range(4)]
    p = points()[None]
    both = stack([one, many]).distance(p.expand(2, -1, -1))
    torch.testing.assert_close(both[0], stack([one]).distance(p)[0])
    torch.testing.assert_close(both[1], stack([many]).distance(p)[0])


def test_normals_point_outward():
    ball = solid(Part(ELLIPSOID, (0, 0, 0), (0.5, 0.5, 0.5), WHITE))
    p = torch.nn.functional.normalize(points(50), dim=1) * 0.5
    torch.testing.assert_close(ball.normal(p[None])[0], p / 0.5, atol=5e-3, rtol=0)


def test_fit_centres_and_scales():
    parts = fit([Part(BOX, (3.0, 0, 0), (2.0, 1.0, 1.0, 0.0), WHITE)])
    assert parts[0].centre == pytest.approx((0, 0, 0))
    assert np.linalg.norm(parts[0].size[:3]) == pytest.approx(RADIUS)


def everything(parameters=MIDDLE, colour: str = "red") -> Solids:
    return stack([build(category, parameters, colour) for category in CATEGORIES])


def test_there_are_enough_categories_colours_and_parameters():
    assert len(set(CATEGORIES)) >= 20
    assert len(COLOURS) >= 8
    assert N_PARAMETERS >= 3
    assert len(ASYMMETRIC) >= len(CATEGORIES) / 2
    assert set(ASYMMETRIC) <= set(CATEGORIES)


@pytest.mark.parametrize("parameter", range(N_PARAMETERS))
def test_every_parameter_changes_every_shape(parameter):
    def shapes(value: float) -> Solids:
        return everything([value if i == parameter else 0.5 for i in range(N_PARAMETERS)])

    p = points(2000, RADIUS).expand(len(CATEGORIES), -1, -1)
    inside = [shapes(value).distance(p) < 0 for value in (0.0, 1.0)]
    changed = (inside[0] != inside[1]).float().sum(1) / (inside[0] | inside[1]).float().sum(1)
    assert float(changed.min()) > 0.005, CATEGORIES[int(changed.argmin())]


@functools.cache
def meshes():
    solids = everything()
    return {name: mesh_of(solids, i, resolution=56) for i, name in enumerate(CATEGORIES)}


@pytest.mark.parametrize("category", CATEGORIES)
def test_meshes_are_watertight_coloured_and_inside_the_sphere(category):
    mesh = meshes()[category]
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0
    assert np.linalg.norm(mesh.vertices, axis=1).max() < RADIUS * 1.02
    assert np.linalg.norm(mesh.vertices, axis=1).max() > RADIUS * 0.6
    assert mesh.visual.kind == "vertex"
    assert len(mesh.visual.vertex_colors) == len(mesh.vertices)


def test_mesh_volumes_are_those_of_the_solids():
    solids = everything()
    p = points(20000, RADIUS).expand(len(CATEGORIES), -1, -1)
    sampled = (solids.distance(p) < 0).float().mean(1) * (2 * RADIUS) ** 3
    volumes = torch.tensor([meshes()[name].volume for name in CATEGORIES])
    torch.testing.assert_close(volumes.float(), sampled, atol=4e-3, rtol=0.15)


@pytest.mark.parametrize("category", ["mug", "car", "house", "fish"])
def test_the_named_colour_is_on_the_surface(category):
    for colour, wanted in COLOURS.items():
        shape = stack([build(category, MIDDLE, colour)])
        vertices = torch.tensor(meshes()[category].vertices, dtype=torch.float32)[None]
        _, part = shape.distance_and_part(vertices)
        albedo = shape.colour_at(part)[0]
        share = ((albedo - torch.tensor(wanted)).abs().amax(1) < 1e-5).float().mean()
        assert float(share) > 0.3, colour


def cameras(*azimuth: float, elevation: float = 15.0) -> Cameras:
    a = torch.tensor(azimuth)
    return Cameras(torch.full_like(a, elevation), a, torch.full_like(a, 2.0))


def test_asymmetric_categories_look_different_from_front_side_and_back():
    for category in ASYMMETRIC:
        shape = stack([build(category, MIDDLE, "red")]).select(torch.zeros(4, dtype=torch.long))
        rgba = render(shape, cameras(0, 90, 180, 270, elevation=10.0), 32, supersample=1)
        rgb = over(rgba, torch.zeros(4, 3))
        for other in (1, 2, 3):
            covered = (rgba[0, 3] > 0) | (rgba[other, 3] > 0)
            for view in (rgb[other], rgb[other].flip(-1)):
                apart = (rgb[0] - view).abs().amax(0)[covered].mean()
                assert float(apart) > 0.02, (category, other)


def test_objects_stand_upright_and_face_the_front():
    snowman = stack([build("snowman", MIDDLE, "white")]).select(torch.zeros(2, dtype=torch.long))
    front, back = over(
        render(snowman, cameras(0, 180, elevation=0.0), 64), torch.full((2, 3), 0.5)
    ).unbind(0)
    orange = [(p[0] - p[2]).clamp(min=0).sum() for p in (front, back)]
    assert float(orange[0]) > 5 * float(orange[1])
    assert float(front[:, 6:20].mean()) < float(front[:, 44:58].mean())


def test_the_right_of_the_front_view_is_plus_y():
    mug = stack([build("mug", MIDDLE, "red")])
    sides = mug.distance(torch.tensor([[[0.0, 0.45, 0.0], [0.0, -0.45, 0.0]]]))[0]
    assert float(sides[0]) < float(sides[1]), "the handle is at +y"
    covered = render(mug, cameras(0, elevation=0.0), 64)[0, 3].sum(0)
    columns = covered.nonzero()[:, 0]
    assert float(covered[columns[-1] - 3]) < float(covered[columns[0] + 3])


def silhouette(mesh, camera: Cameras, size: int) -> np.ndarray:
    """Fill every projected triangle, four times finer (PIL also draws outlines), and thin out."""
    from PIL import Image, ImageDraw

    fine = 4 * size
    c2w = c2w_from_angles(camera.elevation, camera.azimuth, camera.distance)[0].double().numpy()
    local = (np.asarray(mesh.vertices) - c2w[:3, 3]) @ c2w[:3, :3]
    focal = 0.5 * fine / math.tan(math.radians(FOVY) / 2)
    x = fine / 2 + focal * local[:, 0] / -local[:, 2] - 0.5
    y = fine / 2 - focal * local[:, 1] / -local[:, 2] - 0.5
    image = Image.new("1", (fine, fine))
    draw = ImageDraw.Draw(image)
    for triangle in np.stack([x, y], axis=1)[mesh.faces]:
        draw.polygon([tuple(corner) for corner in triangle], fill=1)
    return np.asarray(image)[2::4, 2::4]


@pytest.mark.parametrize("category", ["mug", "chair", "umbrella", "airplane"])
def test_pictures_have_the_mesh_s_silhouette(category):
    shape = stack([build(category, MIDDLE, "blue")])
    mesh = mesh_of(shape, resolution=96)
    camera = Cameras(torch.tensor([25.0]), torch.tensor([40.0]), torch.tensor([1.95]))
    alpha = render(shape, camera, 128, supersample=1)[0, 3].numpy() > 0.5
    drawn = silhouette(mesh, camera, 128)
    assert (alpha & drawn).sum() / (alpha | drawn).sum() > 0.95


def test_rays_are_those_of_the_random_camera_module():
    generator = torch.Generator().manual_seed(3)
    some = random_cameras(6, generator)
    origins, directions = camera_rays(some, 8)
    c2w = c2w_from_angles(some.elevation, some.azimuth, some.distance)
    focal = 0.5 * 8 / math.tan(math.radians(FOVY) / 2)
    rays_o, rays_d = get_rays(get_ray_directions(8, 8, focal), c2w)
    torch.testing.assert_close(origins, rays_o[:, 0, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(directions, rays_d.flatten(1, 2), atol=1e-5, rtol=0)


def sphere_and_tunnel() -> Solids:
    """A ball of radius 0.5, and a block with a tunnel along x that the block's back closes."""
    tunnel = Part(BOX, (0.2, 0.0, 0.0), (0.3, 0.1, 0.1, 0.0), WHITE, cut=True)
    return stack(
        [
            [Part(ELLIPSOID, (0, 0, 0), (0.5, 0.5, 0.5), WHITE)],
            [Part(BOX, (0, 0, 0), (0.3, 0.3, 0.3, 0.0), WHITE), tunnel],
        ]
    )


def test_depths_are_those_of_a_ball_and_of_a_tunnel_s_end():
    y = torch.tensor([0.0, 0.05, 0.2, 0.4, 0.55])
    one = torch.ones_like(y)
    towards_ray = torch.nn.functional.normalize(torch.stack([-2 * one, y, 0 * y], dim=-1), dim=-1)
    directions = towards_ray.expand(2, -1, -1)
    origins = torch.tensor([[2.0, 0.0, 0.0]] * 2)
    depth, hit = trace(sphere_and_tunnel(), origins, directions)
    slope = y / 2
    b = 2 / (1 + slope.square()).sqrt()
    root = b.square() - 4 + 0.25
    assert hit[0].tolist() == (root > 0).tolist() == [True, True, True, True, False]
    torch.testing.assert_close(depth[0, :4], (b - root.sqrt())[:4], atol=2e-3, rtol=0)
    length = (1 + slope.square()).sqrt()
    assert hit[1].tolist() == [True, True, True, False, False]
    wanted = torch.tensor([2.1, 2.1, 1.7]) * length[:3]
    torch.testing.assert_close(depth[1, :3], wanted, atol=2e-3, rtol=0)


def test_tracing_stops_at_the_far_end():
    solids = sphere_and_tunnel().select(slice(0, 1))
    origins, directions = torch.tensor([[2.0, 0, 0]]), torch.tensor([[[-1.0, 0, 0]] * 3])
    near, far = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.4, 1.6, 0.5]])
    depth, hit = trace_reference(solids, origins, directions, near, far, MARCH_STEPS)
    assert hit.tolist() == [[False, True, False]]
    assert float(depth[0, 1]) == pytest.approx(1.5, abs=2e-3)
    assert float(depth[0, 2]) == 1.0


@pytest.mark.gpu
def test_the_kernel_traces_as_the_reference():
    """Rounding may let a ray in a thousand stop a step earlier, 0.001 away."""
    from threestudio_eeg.phantom import solids_triton

    instances = make_instances("train", 2, 0)
    some = random_cameras(len(instances), torch.Generator().manual_seed(0)).to("cuda")
    solids = solids_of(instances).to("cuda")
    origins, directions = camera_rays(some, 64)
    rays = (origins, directions, *_sphere_interval(origins, directions))
    depth, hit = solids_triton.trace(solids, *rays, MARCH_STEPS)
    wanted, wanted_hit = trace_reference(solids, *rays, MARCH_STEPS)
    assert 0.1 < float(hit.float().mean()) < 0.9
    assert float((hit != wanted_hit).float().mean()) < 1e-3
    apart = (depth - wanted).abs()[hit & wanted_hit]
    assert float((apart < 1e-4).float().mean()) > 0.999
    assert float(apart.max()) < 2e-3


def test_camera_ranges():
    generator = torch.Generator().manual_seed(0)
    some = random_cameras(2000, generator)
    for values, (low, high) in (
        (some.elevation, (-10, 45)),
        (some.azimuth, (-180, 180)),
        (some.distance, (1.9, 2.1)),
    ):
        margin = 0.01 * (high - low)
        assert low <= float(values.min()) < low + margin
        assert high - margin < float(values.max()) <= high
    fronts = stimulus_cameras(200, generator)
    assert float(fronts.azimuth.abs().max()) <= 50
    assert torch.equal(fronts.distance, torch.full((200,), 2.0))


@pytest.mark.parametrize(
    ("elevation", "azimuth", "word"),
    [
        (0, 0, "front"),
        (0, 44, "front"),
        (0, 46, "side"),
        (0, -90, "side"),
        (0, 136, "back"),
        (0, -180, "back"),
        (0, 359, "front"),
        (61, 0, "overhead"),
    ],
)
def test_view_words(elevation, azimuth, word):
    assert view_word(elevation, azimuth) == word


def test_sides_are_a_quarter_turn_each():
    azimuth = torch.tensor(
        [0.0, 44.0, 46.0, 90.0, 134.0, 136.0, 180.0, -180.0, -90.0, 270.0, -44.0]
    )
    assert side_index(azimuth).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 0]


def test_pictures_over_a_background():
    rgba = torch.zeros(1, 4, 2, 2)
    rgba[0, :, 0, 0] = torch.tensor([1.0, 0.5, 0.0, 0.25])
    picture = over(rgba, torch.tensor([[0.0, 0.0, 1.0]]))[0]
    torch.testing.assert_close(picture[:, 0, 0], torch.tensor([0.25, 0.125, 0.75]))
    torch.testing.assert_close(picture[:, 1, 1], torch.tensor([0.0, 0.0, 1.0]))
