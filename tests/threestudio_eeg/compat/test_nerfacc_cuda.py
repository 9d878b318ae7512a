"""Our operations against nerfacc's own kernels, on a GPU that can compile them."""

import importlib

import pytest
import torch

from threestudio_eeg.compat import nerfacc
from threestudio_eeg.compat.nerfacc_kernels import RaySegmentsSpec, grids, resampling

from .test_nerfacc_grids import grid, rays

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def real():
    package = pytest.importorskip("nerfacc")
    if not torch.cuda.is_available() or nerfacc.reason("cuda"):
        pytest.skip("needs CUDA and nerfacc's kernels")
    if nerfacc.reason_build("cuda"):
        nerfacc.apply_build("cuda")
    importlib.import_module("nerfacc.cuda._backend")
    return package


@pytest.mark.parametrize(("step", "cone"), [(0.05, 0.0), (0.05, 0.05), (0.05, 0.02), (0.0, 0.0)])
@pytest.mark.parametrize("levels", [1, 3])
def test_traverse_grids(real, levels, step, cone):
    rays_o, rays_d = (part.cuda() for part in rays(500))
    binaries, aabbs = (part.cuda() for part in grid(levels))
    options = {"step_size": step, "cone_angle": cone}
    expected, samples, _ = real.traverse_grids(rays_o, rays_d, binaries, aabbs, **options)
    expected_ends = expected.vals[expected.is_right]
    nerfacc.apply("cuda")
    found, ours, _ = real.traverse_grids(rays_o, rays_d, binaries, aabbs, **options)
    ends = found.vals[found.is_right]
    # Middles on a cell's face fall to either side.
    same = real.pack_info(samples.ray_indices, 500) == real.pack_info(ours.ray_indices, 500)
    assert same[:, 1].float().mean() > 0.97
    kept, ours_kept = (same[part.ray_indices, 1] for part in (samples, ours))
    apart = (ours.vals[ours_kept] - samples.vals[kept]).abs()
    assert (apart < 1e-4).float().mean() > 0.999
    assert abs(float(ends.sum() - expected_ends.sum())) < 0.005 * float(expected_ends.sum())


@pytest.mark.parametrize(
    "name", ["inclusive_sum", "exclusive_sum", "inclusive_prod", "exclusive_prod"]
)
def test_scans_and_their_gradients(real, name):
    counts = torch.tensor([3, 0, 1, 70, 2], device="cuda")
    info = torch.stack((counts.cumsum(0) - counts, counts), -1)
    values = (torch.rand(76, device="cuda") + 0.5).requires_grad_()
    function = getattr(real, name)
    outputs = function(values, info)
    (expected,) = torch.autograd.grad(outputs.sin().sum(), values)
    nerfacc.apply("cuda")
    ours = function(values, info)
    (found,) = torch.autograd.grad(ours.sin().sum(), values)
    torch.testing.assert_close(ours, outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_boxes(real):
    rays_o, rays_d = (part.cuda() for part in rays(500))
    _, aabbs = grid(3)
    expected = real.ray_aabb_intersect(rays_o, rays_d, aabbs.cuda(), 0.5, 4.0)
    found = grids.ray_aabb_intersect(rays_o, rays_d, aabbs.cuda(), 0.5, 4.0, float("inf"))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_resampling(real):
    """Distributions without nearly flat parts, where the inverse would magnify rounding."""
    seed = torch.Generator().manual_seed(0)
    edges = torch.rand(20, 9, generator=seed).sort(-1).values.cuda()
    cdfs = (torch.rand(20, 9, generator=seed) + 0.1).cumsum(-1).cuda()
    intervals = real.RayIntervals(vals=edges)
    expected = real.importance_sampling(intervals, cdfs, 6)
    expected_ids = real.searchsorted(intervals, expected[0])
    spec = RaySegmentsSpec(edges)
    found = resampling.importance_sampling(spec, cdfs, 6, False)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.vals, theirs.vals)
    ids = resampling.searchsorted(RaySegmentsSpec(expected[0].vals), spec)
    for ours, theirs in zip(ids, expected_ids, strict=True):
        assert torch.equal(ours, theirs)
