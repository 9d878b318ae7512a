"""Inverse transform sampling and sorted look-up, against loops over the values."""

import pytest
import torch

from threestudio_eeg.compat.nerfacc_kernels import resampling
from threestudio_eeg.compat.nerfacc_kernels.segments import RaySegmentsSpec

COUNTS = [4, 2, 7]


def spec(rows):
    counts = torch.tensor([len(row) for row in rows])
    return RaySegmentsSpec(torch.cat(rows), counts.cumsum(0) - counts, counts)


@pytest.fixture
def edges():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(n, generator=generator).sort().values for n in COUNTS]


@pytest.fixture
def cdfs():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(n, generator=generator).cumsum(0) for n in COUNTS]


def loop_sample(edges, cdf, count, shift):
    """One ray: equal steps of the distribution, looked up in it."""
    samples = []
    for number in range(count):
        u = cdf[0] + (number + shift) * (cdf[-1] - cdf[0]) / count
        right = next((i for i in range(len(cdf) - 1) if cdf[i] > u), len(cdf) - 1)
        left = max(right - 1, 0)
        rise = cdf[right] - cdf[left]
        part = 0.5 if rise < 1e-10 else (u - cdf[left]) / rise
        samples.append(edges[left] + part * (edges[right] - edges[left]))
    return torch.stack(samples) if samples else edges.new_zeros(0)


def loop_edges(edges, samples):
    if len(samples) == 0:
        return samples
    if len(samples) == 1:
        return edges[[0, -1]]
    middles = (samples[1:] + samples[:-1]) / 2
    head = (samples[0] - (samples[1] - samples[0]) / 2).clamp(min=edges[0])
    tail = (samples[-1] + (samples[-1] - samples[-2]) / 2).clamp(max=edges[-1])
    return torch.cat((head[None], middles, tail[None]))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_same_number_for_every_ray(edges, cdfs, count):
    intervals, samples = resampling.importance_sampling(spec(edges), torch.cat(cdfs), count, False)
    rows = [loop_sample(e, c, count, 0.5) for e, c in zip(edges, cdfs, strict=True)]
    torch.testing.assert_close(samples.vals, torch.stack(rows))
    bounds = [loop_edges(e, row) for e, row in zip(edges, rows, strict=True)]
    torch.testing.assert_close(intervals.vals, torch.stack(bounds))


def test_batched_rays_keep_their_shape():
    edges = torch.linspace(0, 1, 5).expand(2, 3, 5)
    cdfs = edges**2
    intervals, samples = resampling.importance_sampling(RaySegmentsSpec(edges), cdfs, 4, False)
    assert intervals.vals.shape == (2, 3, 5)
    row = loop_sample(edges[0, 0], cdfs[0, 0], 4, 0.5)
    torch.testing.assert_close(samples.vals, row.expand(2, 3, 4))


def test_a_number_for_each_ray(edges, cdfs):
    asked = [3, 0, 2]
    intervals, samples = resampling.importance_sampling(
        spec(edges), torch.cat(cdfs), torch.tensor(asked), False
    )
    rows = [loop_sample(e, c, n, 0.5) for e, c, n in zip(edges, cdfs, asked, strict=True)]
    bounds = [loop_edges(e, row) for e, row in zip(edges, rows, strict=True)]
    torch.testing.assert_close(samples.vals, torch.cat(rows))
    torch.testing.assert_close(intervals.vals, torch.cat(bounds))
    assert samples.chunk_cnts.tolist() == asked
    assert samples.ray_indices.tolist() == [0, 0, 0, 2, 2]
    assert intervals.chunk_cnts.tolist() == [4, 0, 3]
    assert intervals.ray_indices.tolist() == [0, 0, 0, 0, 2, 2, 2]
    assert intervals.is_left.tolist() == [True] * 3 + [False] + [True] * 2 + [False]
    assert intervals.is_right.tolist() == [False] + [True] * 3 + [False] + [True] * 2


def test_stratified_shifts_a_whole_ray_by_one_part_of_a_step():
    edges = torch.linspace(0, 1, 3).expand(64, 3)
    torch.manual_seed(0)
    _, samples = resampling.importance_sampling(RaySegmentsSpec(edges), edges.clone(), 4, True)
    shift = samples.vals * 4 - torch.arange(4)
    torch.testing.assert_close(shift, shift[:, :1].expand(-1, 4))
    assert shift.min() >= 0
    assert shift.max() <= 1
    assert shift[:, 0].std() > 0.2


def test_a_flat_distribution_gives_the_middle():
    edges = torch.tensor([[0.0, 1.0, 3.0]])
    _, samples = resampling.importance_sampling(RaySegmentsSpec(edges), torch.zeros(1, 3), 2, False)
    torch.testing.assert_close(samples.vals, torch.full((1, 2), 2.0))


def loop_search(keys, value):
    right = next((i for i in range(len(keys) - 1) if keys[i] > value), len(keys) - 1)
    return max(right - 1, 0), right


def queries():
    return [torch.tensor([-1.0, 0.3, 2.0]), torch.tensor([0.5]), torch.linspace(0, 1, 5)]


def test_search_in_packed_rays(edges):
    key, query = spec(edges), spec(queries())
    left, right = resampling.searchsorted(query, key)
    expected = [
        (int(begin) + a, int(begin) + b)
        for begin, keys, values in zip(key.chunk_starts, edges, queries(), strict=True)
        for a, b in (loop_search(keys, value) for value in values)
    ]
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == expected


def test_search_in_batched_rays_counts_from_the_ray():
    keys = torch.tensor([[0.0, 1.0, 2.0, 2.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    values = torch.tensor([[0.0, 2.0, 9.0], [-1.0, 3.5, 5.0]])
    left, right = resampling.searchsorted(RaySegmentsSpec(values), RaySegmentsSpec(keys))
    expected = [[loop_search(k, v) for v in row] for k, row in zip(keys, values, strict=True)]
    assert torch.stack((left, right), -1).tolist() == [[list(p) for p in row] for row in expected]
