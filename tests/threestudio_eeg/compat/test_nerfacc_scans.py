"""Running sums and products along rays, against loops over the rays."""

import pytest
import torch

from threestudio_eeg.compat.nerfacc_kernels import scans
from threestudio_eeg.neural_fields import compositing

COUNTS = [3, 0, 1, 7, 0, 2]


@pytest.fixture
def packed():
    counts = torch.tensor(COUNTS)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(int(counts.sum()), generator=generator) + 0.1
    return counts.cumsum(0) - counts, counts, values


def by_ray(function, starts, counts, values):
    """Apply ``function`` to each ray's values on their own."""
    pieces = [function(values[s : s + n]) for s, n in zip(starts, counts, strict=True)]
    return torch.cat(pieces)


def shifted(values, first):
    return torch.cat((torch.full_like(values[:1], first), values[:-1]))


LOOPS = {
    "inclusive_sum": lambda v: v.cumsum(0),
    "exclusive_sum": lambda v: shifted(v, 0).cumsum(0),
    "inclusive_prod_forward": lambda v: v.cumprod(0),
    "exclusive_prod_forward": lambda v: shifted(v, 1).cumprod(0),
}


def run(name, starts, counts, values):
    extra = (False, False) if name.endswith("sum") else ()
    return getattr(scans, name)(starts, counts, values, *extra)


@pytest.mark.parametrize("name", LOOPS)
def test_forward(name, packed):
    starts, counts, values = packed
    expected = by_ray(LOOPS[name], starts, counts, values)
    torch.testing.assert_close(run(name, starts, counts, values), expected)


@pytest.mark.parametrize("name", LOOPS)
def test_gradient(name, packed):
    starts, counts, values = packed
    leaf = values.double().requires_grad_()
    outputs = by_ray(LOOPS[name], starts, counts, leaf)
    incoming = torch.linspace(-1, 1, len(values)).double()
    (expected,) = torch.autograd.grad(outputs, leaf, incoming)
    if name.endswith("sum"):
        found = getattr(scans, name)(starts, counts, incoming, False, True)
    else:
        backward = getattr(scans, name.replace("forward", "backward"))
        found = backward(starts, counts, leaf.detach(), outputs.detach(), incoming)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOOPS)
def test_no_values(name):
    nothing = torch.zeros(2, dtype=torch.long)
    assert len(run(name, nothing, nothing, torch.zeros(0))) == 0


@pytest.mark.parametrize("name", ["inclusive_prod_forward", "exclusive_prod_forward"])
def test_products_hold_zeros(name, packed):
    starts, counts, values = packed
    values[5] = 0
    expected = by_ray(LOOPS[name], starts, counts, values)
    found = run(name, starts, counts, values)
    assert (found == 0).any()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["inclusive_sum", "exclusive_sum"])
def test_normalised_sums_end_at_one(name, packed):
    starts, counts, values = packed
    found = getattr(scans, name)(starts, counts, values, True, False)
    expected = by_ray(
        lambda v: LOOPS[name](v) / LOOPS[name](v)[-1:].clamp_min(1e-10), starts, counts, values
    )
    torch.testing.assert_close(found, expected)


def test_sums_keep_single_precision_behind_many_rays():
    counts = torch.full((20000,), 8)
    starts = counts.cumsum(0) - counts
    values = torch.full((int(counts.sum()),), 0.1)
    found = scans.inclusive_sum(starts, counts, values, False, False)
    torch.testing.assert_close(found[-8:], values[:8].cumsum(0), rtol=1e-6, atol=0)


def test_the_embedded_host_sums_the_same(packed):
    starts, counts, values = packed
    rays = torch.arange(len(counts)).repeat_interleave(counts)
    found = scans.exclusive_sum(starts, counts, values, False, False)
    torch.testing.assert_close(found, compositing.exclusive_sum(values, rays, len(counts)))
