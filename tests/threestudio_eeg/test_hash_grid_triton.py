"""The grid's Triton kernels against the readable reference: values, gradients, second order."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from threestudio_eeg.neural_fields.hash_grid import GridLayout, make_layout
from threestudio_eeg.neural_fields.hash_grid_reference import encode as encode_reference

from .kernels import DEVICE, INTERPRETED, run_in_interpreter, runs_kernels


def small_layout(n_features: int = 2) -> GridLayout:
    """A dense and a hashed level."""
    layout = make_layout(3, 2, n_features, 8, 5, 1.6)
    assert [level.hashed for level in layout.levels] == [False, True]
    return layout


def points_on_rays(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Neighbours that share cells, some of them outside of the box."""
    seed = torch.Generator().manual_seed(0)
    start, end = torch.rand(2, 3, 3, generator=seed, dtype=dtype) * 1.4 - 0.2
    along = torch.linspace(0, 1, -(-n // 3), dtype=dtype)[:, None]
    rays = [a + (b - a) * along for a, b in zip(start, end, strict=True)]
    return torch.cat(rays)[:n].to(DEVICE)


def derivatives(encode, layout, x, table, gradient, along, seed):
    """Features, both gradients, and what they give when differentiated once more."""
    x, table, gradient = (t.clone().requires_grad_() for t in (x, table, gradient))
    y = encode(x, table, layout)
    of_x, of_table = torch.autograd.grad(y, (x, table), gradient, create_graph=True)
    total = (of_x * along).sum() + (of_table * seed).sum()
    return (y, of_x, of_table, *torch.autograd.grad(total, (x, table, gradient)))


def test_in_the_interpreter():
    run_in_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("n_features", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_derivatives_equal_the_reference(n_features, dtype):
    from threestudio_eeg.neural_fields.hash_grid_triton import encode

    if INTERPRETED and n_features != 2 and dtype == torch.float32:
        pytest.skip("slow in the interpreter")
    layout = small_layout(n_features)
    x = points_on_rays(50, dtype)
    torch.manual_seed(1)
    table = torch.randn(layout.n_entries, n_features, dtype=dtype, device=DEVICE)
    gradient = torch.randn(len(x), layout.n_output_dims, dtype=dtype, device=DEVICE)
    inputs = (layout, x, table, gradient, torch.randn_like(x), torch.randn_like(table))
    found, expected = (derivatives(e, *inputs) for e in (encode, encode_reference))
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, atol=tolerance * scale, rtol=0)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tables_are_summed_in_single_precision(dtype):
    from threestudio_eeg.neural_fields.hash_grid_triton import encode

    layout = small_layout()
    x = points_on_rays(40, torch.float32)
    table = torch.randn(layout.n_entries, 2, device=DEVICE).to(dtype).requires_grad_()
    seed = torch.ones(len(x), layout.n_output_dims, device=DEVICE, dtype=dtype)
    y = encode(x, table, layout)
    (of_table,) = torch.autograd.grad(y, table, seed)
    assert y.dtype == of_table.dtype == dtype
    single = table.detach().float().requires_grad_()
    expected = encode_reference(x, single, layout)
    (of_single,) = torch.autograd.grad(expected, single, seed.float())
    torch.testing.assert_close(y, expected.to(dtype))
    torch.testing.assert_close(of_table, of_single.to(dtype))


@runs_kernels
def test_no_points_and_other_grids():
    from threestudio_eeg.neural_fields.hash_grid_triton import encode

    layout = small_layout()
    table = torch.randn(layout.n_entries, 2, device=DEVICE)
    assert encode(torch.zeros(0, 3, device=DEVICE), table, layout).shape == (0, 4)
    plane = make_layout(2, 2, 2, 8, 3, 1.6)
    x, table = torch.rand(5, 2, device=DEVICE), torch.randn(plane.n_entries, 2, device=DEVICE)
    torch.testing.assert_close(encode(x, table, plane), encode_reference(x, table, plane))


@runs_kernels
@pytest.mark.parametrize("stored", ["by feature", "by point"])
def test_gradients_may_be_stored_either_way(stored):
    from threestudio_eeg.neural_fields.hash_grid_triton import scatter

    layout = small_layout()
    x = points_on_rays(30, torch.float32)
    gradient = torch.randn(len(x), layout.n_output_dims, device=DEVICE)
    given = gradient if stored == "by point" else gradient.t().contiguous().t()
    table = torch.zeros(layout.n_entries, 2, device=DEVICE, requires_grad=True)
    (expected,) = torch.autograd.grad(encode_reference(x, table, layout), table, gradient)
    torch.testing.assert_close(scatter(x, given, layout), expected, atol=1e-5, rtol=1e-4)


def test_blocks_smaller_than_their_threads_are_refused():
    pytest.importorskip("triton")
    from threestudio_eeg.neural_fields.hash_grid_triton import Tuning

    with pytest.raises(ValueError, match="scatter_block"):
        Tuning(scatter_block=64, scatter_warps=4)
    with pytest.raises(ValueError, match="4 divides"):
        Tuning(runs=((6, 100.0),))


class Instructions:
    """The kernels' own instructions for a GPU, done in memory, with the GPU's demands on addresses.

    An instruction on several numbers needs an address that is a multiple of their size.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import triton.language as tl

        from threestudio_eeg.neural_fields import hash_grid_triton

        self.used: set[str] = set()
        self.stores = []
        monkeypatch.setattr(tl, "inline_asm_elementwise", self.run)
        for name in ("_reads_vectors", "_adds_vectors"):
            monkeypatch.setattr(hash_grid_triton, name, lambda tensor: True)
        launch = hash_grid_triton._Launch.__init__

        def noted(it, positions, table, layout):
            launch(it, positions, table, layout)
            self.stores += [table, it.words]

        monkeypatch.setattr(hash_grid_triton._Launch, "__init__", noted)

    def run(self, asm, constraints, args, dtype, is_pure, pack):
        values = [arg.handle.data for arg in args]
        name = next(n for n in ("ld.global.nc.v2.b64", "add.v2.f32", "add.v4.f32") if n in asm)
        self.used.add(name)
        if name.startswith("ld"):
            assert constraints == "=l,=l,l"
            return self.read(args[0], values[0])
        self.add(values[0], values[1:-1], values[-1] != 0)
        return args[-1]

    def read(self, like, addresses):
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        self.check(addresses, 16)
        words = [np.frombuffer(ctypes.string_at(int(at), 16), np.int64) for at in addresses]
        halves = np.stack(words).T.copy()
        return tuple(tl.tensor(TensorHandle(half, tl.int64), like.type) for half in halves)

    def add(self, addresses, values, take):
        self.check(addresses[take], 4 * len(values))
        for i in take.nonzero()[0]:
            place = (ctypes.c_float * len(values)).from_address(int(addresses[i]))
            for j, value in enumerate(values):
                place[j] += float(value[i])

    def check(self, addresses, size):
        assert not (addresses % size).any(), "misaligned address"
        within = np.zeros(addresses.shape, bool)
        for store in self.stores:
            begin, length = store.data_ptr(), store.numel() * store.element_size()
            within |= (addresses >= begin) & (addresses + size <= begin + length)
        assert within.all(), "outside of the table"


ODD = {"kind": "tiled", "n_levels": 2, "base_resolution": 3, "per_level_scale": 1.6}
WIDE = {"ld.global.nc.v2.b64", "add.v4.f32", "add.v2.f32"}


@pytest.mark.skipif(not INTERPRETED, reason="what the GPU does is done by hand")
@pytest.mark.parametrize(
    ("layout", "dtype", "expected"),
    [
        (small_layout(), torch.float32, WIDE),
        (make_layout(3, **{**ODD, "base_resolution": 4}), torch.float32, WIDE),
        (make_layout(3, **ODD), torch.float32, {"add.v2.f32"}),
        (make_layout(3, **ODD), torch.float16, {"add.v2.f32"}),
        (small_layout(), torch.float16, {"add.v2.f32", "add.v4.f32"}),
        (make_layout(3, n_features=4, **ODD), torch.float32, {"add.v2.f32"}),
        (make_layout(3, n_features=8, **ODD), torch.float16, {"add.v2.f32"}),
        (make_layout(3, n_features=1, **ODD), torch.float32, set()),
    ],
)
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_several_numbers_at_once_are_at_addresses_that_a_gpu_takes(
    monkeypatch, layout, dtype, expected, shift
):
    """Levels of any size, and tables that begin anywhere within another tensor."""
    from threestudio_eeg.neural_fields.hash_grid_triton import gather, scatter, slope

    instructions = Instructions(monkeypatch)
    x = points_on_rays(24, torch.float32)
    torch.manual_seed(1)
    whole = torch.randn(layout.n_entries * layout.n_features + shift, dtype=dtype)
    table = whole[shift:].view(layout.n_entries, layout.n_features)
    gradient = torch.randn(len(x), layout.n_output_dims)
    exact = (table.double().requires_grad_(), x.double().requires_grad_())
    y = encode_reference(exact[1], exact[0], layout)
    of_table, of_x = torch.autograd.grad(y, exact, gradient.double())
    found = (
        gather(x, table, layout),
        scatter(x, gradient, layout),
        slope(x, table, gradient, layout),
    )
    tolerance = 2e-3 if dtype == torch.float16 else 1e-5
    for ours, theirs in zip(found, (y, of_table, of_x), strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance * scale, rtol=0)
    assert instructions.used == expected


@pytest.mark.gpu
@pytest.mark.parametrize("n_features", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_levels_of_an_odd_size_and_tables_within_another_tensor(n_features, dtype, shift):
    from threestudio_eeg.neural_fields.hash_grid_triton import gather, scatter, slope

    layout = make_layout(3, n_features=n_features, **ODD)
    x = points_on_rays(3000, torch.float32)
    whole = torch.randn(layout.n_entries * n_features + shift, device="cuda", dtype=dtype)
    table = whole[shift:].view(layout.n_entries, n_features)
    gradient = torch.randn(len(x), layout.n_output_dims, device="cuda")
    exact = (table.double().requires_grad_(), x.double().requires_grad_())
    y = encode_reference(exact[1], exact[0], layout)
    wanted = (y, *torch.autograd.grad(y, exact, gradient.double()))
    found = (gather(x, table, layout), scatter(x, gradient, layout))
    for ours, theirs in zip((*found, slope(x, table, gradient, layout)), wanted, strict=True):
        scale = float(theirs.detach().abs().max())
        tolerance = 2e-3 if dtype == torch.float16 else 2e-4
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance * scale, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("runs", [(), ((4, 1e9),), ((16, 10.0), (4, 1e9))])
def test_launch_settings_do_not_change_the_result(wide, runs):
    """A grid of real size; positions on a lattice where single precision is exact."""
    from threestudio_eeg.neural_fields.hash_grid_triton import Tuning, gather, scatter, slope

    layout = make_layout(3, 16, 2, 19, 16, 1.447269237440378)
    torch.manual_seed(0)
    x = torch.rand(100_000, 3, device="cuda")
    x = torch.cat((x, x[:1000].repeat_interleave(16, 0)))
    table = torch.randn(layout.n_entries, 2, device="cuda")
    gradient = torch.randn(layout.n_output_dims, len(x), device="cuda").t()
    tuning = Tuning(wide_reads=wide, wide_adds=wide, runs=runs)
    plain = Tuning(wide_reads=False, wide_adds=False, runs=())
    pairs = [
        (gather(x, table, layout, tuning=t), scatter(x, gradient, layout, tuning=t))
        + (slope(x, table, gradient, layout, tuning=t),)
        for t in (tuning, plain)
    ]
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=1e-4)


@pytest.mark.gpu
def test_real_size_equals_the_torch_backend():
    from threestudio_eeg.neural_fields.hash_grid import encode

    layout = make_layout(3, 16, 2, 19, 16, 1.447269237440378)
    torch.manual_seed(0)
    x = torch.rand(300_000, 3, device="cuda")
    table = torch.randn(layout.n_entries, 2, device="cuda", requires_grad=True)
    seed = torch.randn(len(x), layout.n_output_dims, device="cuda")
    results = []
    for backend in ("triton", "torch"):
        y = encode(x, table, layout, backend=backend)
        results.append((y.detach(), torch.autograd.grad(y, table, seed)[0]))
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 3e-4
