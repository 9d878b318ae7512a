"""The renderer on fields whose pictures are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.cameras import c2w_from_angles, camera_batch
from threestudio_eeg.builtin.registry import find


class Ball(nn.Module):
    """Constant density inside a sphere, colour by the sign of y."""

    def __init__(self, density=20.0, radius=0.5):
        super().__init__()
        self.density = nn.Parameter(torch.tensor(density))
        self.radius = radius

    def forward_density(self, points):
        inside = (points.norm(dim=-1, keepdim=True) < self.radius).float()
        return self.density * inside

    def forward(self, points, output_normal=False):
        features = torch.where(points[:, 1:2] > 0, 20.0, -20.0).expand(-1, 3)
        out = {"density": self.forward_density(points), "features": features}
        if output_normal:
            out["normal"] = out["shading_normal"] = nn.functional.normalize(points, dim=-1)
        return out


def renderer(geometry=None, requires_normal=False, **cfg):
    torch.manual_seed(0)
    return find("nerf-volume-renderer")(
        {"num_samples_per_ray": 128, **cfg},
        geometry=geometry or Ball(),
        material=find("no-material")({"requires_normal": requires_normal}),
        background=find("solid-color-background")({"color": [0.25, 0.5, 0.75]}),
    )


def view(azimuth=0.0, size=(33, 33), n=1):
    full = torch.full((n,), 1.0)
    c2w = c2w_from_angles(0 * full, azimuth * full, 2 * full)
    batch = camera_batch(c2w, math.radians(60) * full, *size)
    return {**batch, "light_positions": batch["camera_positions"]}


def test_picture_of_a_ball():
    module = renderer()
    module.update_step(0, 0)
    with torch.no_grad():
        out = module.eval()(**view())
    corner = out["comp_rgb"][0, 0, 0]
    assert float(out["opacity"][0, 16, 16]) == pytest.approx(1 - math.exp(-20), abs=1e-4)
    torch.testing.assert_close(corner, torch.tensor([0.25, 0.5, 0.75]))
    assert float(out["depth"][0, 16, 16]) == pytest.approx(1.5 + 1 / 20, abs=0.02)
    assert float(out["z_variance"][0, 16, 16]) == pytest.approx(1 / 20**2, rel=0.3)
    assert out["comp_rgb"][0, 16, 20].mean() > 0.99
    assert out["comp_rgb"][0, 16, 12].mean() < 0.01
    assert "weights" not in out


class Counted(Ball):
    """Counts the points that it is asked about."""

    asked = 0

    def forward_density(self, points):
        self.asked += len(points)
        return super().forward_density(points)


def test_a_picture_asks_about_every_sample_once():
    """What is worth shading is known from the same values that are shaded."""
    field = Counted()
    module = renderer(field)
    module.update_step(0, 0)
    marched = []
    march = module._march
    module._march = lambda *rays: marched.append(march(*rays)) or marched[-1]
    module.eval()
    field.asked = 0
    with torch.no_grad():
        out = module(**view())
    assert field.asked == sum(len(samples) for samples in marched) > 0
    torch.testing.assert_close(out["comp_rgb"], module(**view())["comp_rgb"].detach())


def test_depth_varies_only_where_most_of_a_ray_is_absorbed():
    """Threestudio's definition: the weights are normalised by the opacity, thin rays count as 0."""
    thin, half = Ball(density=0.5), Ball(density=1.5)
    for field, solid in ((thin, False), (half, True)):
        module = renderer(field)
        module.update_step(0, 0)
        out = module(**view())
        opacity, found = out["opacity"].flatten(), out["z_variance"].flatten()
        assert (float(opacity.max()) > 0.5) == solid
        rays, weights, t = out["ray_indices"], out["weights"][:, 0], out["t_points"][:, 0]
        share = weights / opacity.clamp(min=1e-5)[rays]
        mean = torch.zeros_like(opacity).index_add(0, rays, share * t)
        spread = torch.zeros_like(opacity).index_add(0, rays, share * (t - mean[rays]) ** 2)
        torch.testing.assert_close(found, spread * (opacity > 0.5), rtol=1e-4, atol=1e-7)
        assert (float(found.max()) > 0.01) == solid


def test_training_gives_packed_samples_that_sum_to_the_opacity():
    module = renderer()
    module.update_step(0, 0)
    out = module(**view(n=2, size=(20, 30)))
    assert out["comp_rgb"].shape == (2, 20, 30, 3)
    total = torch.zeros(2 * 20 * 30).index_add(0, out["ray_indices"], out["weights"][:, 0])
    torch.testing.assert_close(total.view_as(out["opacity"]), out["opacity"])
    names = {"t_points", "t_intervals", "t_dirs", "points", "density", "features"}
    assert names <= set(out)
    out["opacity"].mean().backward()
    assert module.geometry.density.grad != 0


def test_pruning_changes_little():
    module, every = renderer(), renderer(grid_prune=False)
    for step in (0, 16, 32):
        module.update_step(0, step)
    pruned, full = (m.eval()(**view())["comp_rgb"] for m in (module, every))
    assert (pruned - full).abs().mean() < 0.01
    module.train(), every.train()
    assert len(module(**view())["weights"]) < 0.5 * len(every(**view())["weights"])


def test_evaluation_in_chunks_equals_evaluation_at_once():
    small, large = renderer(eval_chunk_size=1000), renderer(eval_chunk_size=10**9)
    small.estimator.fill(), large.estimator.fill()
    first, second = small.eval()(**view()), large.eval()(**view())
    for name, value in first.items():
        torch.testing.assert_close(value, second[name])


def test_jitter_in_training_only():
    module = renderer(grid_prune=False)
    assert not torch.equal(module(**view())["depth"], module(**view())["depth"])
    module.eval()
    assert torch.equal(module(**view())["depth"], module(**view())["depth"])
    assert not renderer(randomized=False).randomized


def test_nothing_there_shows_the_background():
    out = renderer()(**view())
    assert len(out["weights"]) == 0
    torch.testing.assert_close(out["comp_rgb"], out["comp_rgb_bg"])


def test_background_colour_can_be_given():
    out = renderer()(**view(n=2), bg_color=torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
    assert out["comp_rgb"][:, 0, 0].tolist() == [[1, 0, 0], [0, 1, 0]]


def test_normals_face_the_camera():
    module = renderer(requires_normal=True, return_comp_normal=True, return_normal_perturb=True)
    module.estimator.fill()
    out = module(**view())
    torch.testing.assert_close(
        out["comp_normal"][0, 16, 16], torch.tensor([1.0, 0.5, 0.5]), atol=0.02, rtol=0
    )
    assert out["normal_perturb"].shape == out["normal"].shape
    assert "comp_normal" in module.eval()(**view())


def test_state_has_threestudios_names_and_no_parts():
    names = {f"estimator.{n}" for n in ("resolution", "aabbs", "occs", "binaries")}
    assert set(renderer().state_dict()) == {"bbox"} | names


def test_grid_follows_training_only():
    module = renderer().eval()
    module.update_step(0, 0)
    assert not module.estimator.binaries.any()
    module.train()
    module.update_step(0, 0)
    before = module.estimator.occs.clone()
    module.update_step(0, 0)
    assert before.any()
    assert torch.equal(before, module.estimator.occs)


@pytest.mark.parametrize("estimator", ["proposal", "importance", "grid"])
def test_other_estimators_are_refused(estimator):
    with pytest.raises(InputError, match="occgrid"):
        renderer(estimator=estimator)


def test_implicit_volume_learns_to_be_empty():
    """The whole chain trains: opacity falls under a loss on it."""
    grid = {"otype": "HashGrid", "n_levels": 3, "log2_hashmap_size": 10, "base_resolution": 4}
    geometry = find("implicit-volume")({"pos_encoding_config": grid, "normal_type": None})
    module = renderer(geometry, num_samples_per_ray=32)
    optimizer = torch.optim.Adam(geometry.parameters(), lr=0.05)
    opacities = []
    for step in range(20):
        module.update_step(0, step)
        loss = module(**view(size=(12, 12)))["opacity"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        opacities.append(float(loss.detach()))
    assert opacities[-1] < 0.7 * opacities[0]


def volume(**cfg):
    grid = {"otype": "HashGrid", "n_levels": 3, "log2_hashmap_size": 10, "base_resolution": 4}
    torch.manual_seed(0)
    return find("implicit-volume")({"pos_encoding_config": grid, "normal_type": None, **cfg})


def trained(chunk, geometry, view_size=(24, 24), device="cpu", **cfg):
    """A training render, the gradients of a loss on all that it gives, and the bytes it kept."""
    module = renderer(geometry, num_samples_per_ray=48, train_chunk_size=chunk, **cfg)
    for part in (module, geometry, module.material, module.background):
        part.to(device)
    batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in view(size=view_size).items()}
    for step in (0, 16):
        torch.manual_seed(2)
        module.update_step(0, step)
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)
    geometry.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(**batch)
    pulls = [out[name].square().mean() for name in ("comp_rgb", "opacity", "depth", "z_variance")]
    loss = sum(pulls) + out["features"].square().mean()
    loss.backward()
    return out, [p.grad for p in geometry.parameters()], sum(kept.values())


@pytest.mark.parametrize("settings", [{}, {"grid_prune": False}, {"max_samples": 9000}])
@pytest.mark.parametrize("normal_type", [None, "finite_difference", "analytic"])
def test_a_render_in_chunks_has_the_same_values_and_gradients(settings, normal_type):
    geometry = volume(normal_type=normal_type)
    settings = {**settings, "requires_normal": normal_type is not None}
    whole, expected, _ = trained(0, geometry, **settings)
    chunked, found, _ = trained(200, geometry, **settings)
    assert len(whole["weights"]) > 1000
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_a_render_in_chunks_keeps_a_fraction():
    networks = {"otype": "VanillaMLP", "n_neurons": 64, "n_hidden_layers": 1}
    geometry = volume(mlp_network_config=networks)
    (_, _, whole), (out, _, chunked) = trained(0, geometry), trained(200, geometry)
    per_sample = chunked / len(out["weights"])
    assert per_sample < 200
    assert chunked < 0.4 * whole


def test_many_samples_are_rendered_in_chunks_by_default(monkeypatch):
    sizes, geometry = [], volume()
    own = type(geometry).forward

    def watched(self, points, **how):
        sizes.append(len(points))
        return own(self, points, **how)

    monkeypatch.setattr(type(geometry), "forward", watched)
    trained(None, geometry)
    assert max(sizes) > 1000
    sizes.clear()
    monkeypatch.setattr("threestudio_eeg.builtin.renderer.RECOMPUTED_FROM", 1000)
    monkeypatch.setattr("threestudio_eeg.builtin.renderer.RECOMPUTED_CHUNK", 300)
    trained(None, geometry)
    assert 250 < max(sizes[1:]) <= 300


@pytest.mark.gpu
def test_cuda_equals_cpu():
    grid = {"otype": "HashGrid", "n_levels": 3, "log2_hashmap_size": 10, "base_resolution": 4}
    geometry = find("implicit-volume")({"pos_encoding_config": grid, "normal_type": "analytic"})
    module = renderer(geometry, requires_normal=True, randomized=False, num_samples_per_ray=64)
    module.estimator.fill()
    pictures = []
    for device in ("cpu", "cuda"):
        for part in (module, geometry, module.material, module.background):
            part.to(device)
        batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in view().items()}
        out = module(**batch)
        geometry.zero_grad()
        out["comp_rgb"].square().sum().backward()
        gradient = geometry.encoding.encoding.encoding.params.grad
        pictures.append((out["comp_rgb"].detach().cpu(), gradient.cpu().clone()))
    torch.testing.assert_close(pictures[1], pictures[0], atol=1e-3, rtol=1e-2)
    module.update_step(0, 0)
    module.update_step(0, 512)
    assert module.estimator.binaries.any()


@pytest.mark.gpu
@pytest.mark.parametrize("chunk", [None, 200])
def test_fused_kernels_of_grid_and_networks_give_the_graphs_gradients(chunk, monkeypatch):
    networks = {"otype": "VanillaMLP", "n_neurons": 64, "n_hidden_layers": 1}
    networks |= {"backend": "triton", "precision": "float16"}
    geometry = volume(mlp_network_config=networks)
    asked = []
    own = type(geometry).evaluation
    watched = lambda *given, **how: asked.append(own(*given, **how)) or asked[-1]  # noqa: E731
    monkeypatch.setattr(type(geometry), "evaluation", watched)
    whole, expected, _ = trained(0, geometry, device="cuda")
    assert not asked
    found, gradients, _ = trained(chunk, geometry, device="cuda")
    assert asked[0] is not None
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert float((ours - theirs).norm()) <= 5e-3 * float(theirs.norm())
