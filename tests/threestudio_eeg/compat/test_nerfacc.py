"""Putting our operations, or a compiler flag, into nerfacc."""

import importlib
import importlib.util

import pytest
import torch

from threestudio_eeg.compat import nerfacc
from threestudio_eeg.compat.nerfacc_kernels import grids, scans

needs_nerfacc = pytest.mark.skipif(
    importlib.util.find_spec("nerfacc") is None, reason="nerfacc is not installed"
)


@pytest.fixture
def package(fake):
    fake("nerfacc", pack_info=1)
    fake("nerfacc.cuda")
    return fake("nerfacc.pack", pack_info=1)


@pytest.mark.parametrize("nvcc", [None, "/usr/bin/nvcc"])
@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.13.1+cu130"])
def test_which_of_the_two_is_needed_on_cuda(package, monkeypatch, nvcc, version):
    monkeypatch.setattr(nerfacc.shutil, "which", lambda name: nvcc)
    monkeypatch.setattr(torch, "__version__", version)
    assert nerfacc.reason("cpu") == "nerfacc has no CPU kernels"
    assert nerfacc.reason_build("cpu") is None
    assert (nerfacc.reason("cuda") is None) == (nvcc is not None)
    too_new = version.startswith("2.13")
    assert (nerfacc.reason_build("cuda") is not None) == (too_new and nvcc is not None)


def test_compiled_kernels_need_neither(package, fake, monkeypatch):
    fake("nerfacc.csrc")
    monkeypatch.setattr(nerfacc.shutil, "which", lambda name: None)
    assert nerfacc.reason("cuda") is None
    assert nerfacc.reason_build("cuda") is None


def test_every_operation_is_replaced(package):
    nerfacc.apply("cpu")
    backend = importlib.import_module("nerfacc.cuda")
    assert backend.traverse_grids is grids.traverse_grids
    assert backend.exclusive_prod_backward is scans.exclusive_prod_backward
    assert package.pack_info is nerfacc.pack_info
    assert importlib.import_module("nerfacc").pack_info is nerfacc.pack_info


@pytest.mark.parametrize("n_rays", [None, 5])
def test_pack_info(n_rays):
    found = nerfacc.pack_info(torch.tensor([0, 0, 2, 2, 2]), n_rays)
    expected = [[0, 2], [2, 0], [2, 3], [5, 0], [5, 0]]
    assert found.tolist() == expected[: n_rays or 3]
    assert found.dtype == torch.int64


def test_only_nerfacc_is_built_as_cpp17(monkeypatch):
    from torch.utils import cpp_extension

    calls = []
    monkeypatch.setattr(cpp_extension, "load", lambda name, **kwargs: calls.append(kwargs))
    nerfacc.apply_build("cuda")
    cpp_extension.load(name="other", extra_cflags=["-O3"])
    cpp_extension.load(name="nerfacc_cuda", extra_cflags=["-O3"])
    assert calls == [
        {"extra_cflags": ["-O3"]},
        {"extra_cflags": ["-O3", "-std=c++17"], "extra_cuda_cflags": ["-std=c++17"]},
    ]


@needs_nerfacc
def test_rendering_through_nerfacc_itself():
    """Its own Python around our operations: weights, and their gradients."""
    nerfacc.apply("cpu")
    real = importlib.import_module("nerfacc")
    rays = torch.tensor([0, 0, 0, 2, 2])
    starts = torch.tensor([0.0, 0.5, 1.0, 0.2, 0.4])
    ends = starts + 0.2
    density = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0], requires_grad=True)
    weights, _, alphas = real.render_weight_from_density(
        starts, ends, density, ray_indices=rays, n_rays=3
    )
    from_alpha, _ = real.render_weight_from_alpha(alphas, ray_indices=rays, n_rays=3)
    torch.testing.assert_close(from_alpha, weights)
    alpha = 1 - torch.exp(-0.2 * density.detach().double().requires_grad_())
    one, two, three, four, five = alpha
    expected = torch.stack(
        (one, (1 - one) * two, (1 - one) * (1 - two) * three, four, (1 - four) * five)
    )
    torch.testing.assert_close(weights.double(), expected)
    (found,) = torch.autograd.grad(weights.square().sum(), density, retain_graph=True)
    (again,) = torch.autograd.grad(from_alpha.square().sum(), density)
    torch.testing.assert_close(again, found)


@needs_nerfacc
def test_nerfaccs_own_example_of_sampling():
    nerfacc.apply("cpu")
    real = importlib.import_module("nerfacc")
    intervals = real.RayIntervals(
        vals=torch.tensor([0.0, 1.0, 0.0, 1.0, 2.0]), packed_info=torch.tensor([[0, 2], [2, 3]])
    )
    cdfs = torch.tensor([0.0, 0.5, 0.0, 0.5, 1.0])
    edges, samples = real.importance_sampling(intervals, cdfs, 2)
    assert edges.vals.tolist() == [[0.0, 0.5, 1.0], [0.0, 1.0, 2.0]]
    assert samples.vals.tolist() == [[0.25, 0.75], [0.5, 1.5]]


@needs_nerfacc
def test_an_occupancy_grid_skips_what_is_empty():
    nerfacc.apply("cpu")
    real = importlib.import_module("nerfacc")
    estimator = real.OccGridEstimator([-1.0, -1, -1, 1, 1, 1], resolution=4)
    estimator.update_every_n_steps(0, lambda x: (x[:, :1] > 0).float())
    origins = torch.tensor([[-3.0, 0.1, 0.1], [3.0, 9.0, 9.0]])
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    rays, starts, ends = estimator.sampling(origins, directions, render_step_size=0.25)
    assert rays.tolist() == [0] * 4
    assert starts.tolist() == [3, 3.25, 3.5, 3.75]
    assert ends.tolist() == [3.25, 3.5, 3.75, 4]


@needs_nerfacc
def test_a_proposal_network_learns_where_the_object_is():
    nerfacc.apply("cpu")
    real = importlib.import_module("nerfacc")
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.zeros(32))
    estimator = real.PropNetEstimator(torch.optim.Adam([table], lr=0.2))

    def wall(t):
        return 50.0 * ((t > 2.0) & (t < 2.2))

    def proposal(t_starts, t_ends):
        cell = ((t_starts + t_ends) / 2 * 8).long().clamp(0, 31)
        return table.exp()[cell]

    for step in range(60):
        t_starts, t_ends = estimator.sampling(
            [proposal], [64], 16, 4, 0.0, 4.0, "uniform", requires_grad=True
        )
        density = wall((t_starts + t_ends) / 2)
        _, transmittance, _ = real.render_weight_from_density(t_starts, t_ends, density)
        estimator.update_every_n_steps(transmittance, requires_grad=True)
        if step == 0:
            first = near_the_wall(t_starts, t_ends)
    assert near_the_wall(t_starts, t_ends) > 2 * first


def near_the_wall(t_starts, t_ends):
    middles = (t_starts + t_ends) / 2
    return ((middles > 1.8) & (middles < 2.4)).float().mean()
