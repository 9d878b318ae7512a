"""The memory of training pictures: what it recalls, how its temperature is chosen."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from eeg_encoder.models.memory import PictureMemory


def pictures(n: int = 40, width: int = 16) -> torch.Tensor:
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(0)), dim=1)


def noisy(clean: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    return F.normalize(clean + strength * noise / clean.shape[1] ** 0.5, dim=1)


def test_a_stored_picture_recalls_itself():
    stored = pictures()
    recalled = PictureMemory.of(stored, 0.02)(stored)
    assert F.cosine_similarity(recalled, stored).min() > 0.999
    assert torch.allclose(recalled.norm(dim=1), torch.ones(len(stored)))


def test_noise_is_taken_away():
    stored = pictures()
    found = noisy(stored, 0.8)
    recalled = PictureMemory.of(stored, 0.05)(found)
    before, after = (F.cosine_similarity(x, stored).mean() for x in (found, recalled))
    assert after > before + 0.1


def test_a_hot_memory_answers_the_mean():
    stored = pictures()
    recalled = PictureMemory.of(stored, 1e4)(stored[:3])
    expected = F.normalize(stored.mean(0), dim=0).expand(3, -1)
    assert torch.allclose(recalled, expected, atol=1e-2)


def test_temperature_is_the_best_on_validation():
    stored = pictures()
    found, offered = noisy(stored, 0.8), (0.01, 0.1, 1.0)
    chosen = PictureMemory.fitted(stored, found, stored, offered).temperature
    nearness = {
        t: float(F.cosine_similarity(PictureMemory.of(stored, t)(found), stored).mean())
        for t in offered
    }
    assert nearness[chosen] == max(nearness.values()) > min(nearness.values())
