from __future__ import annotations

import numpy as np
import pytest
import torch

from eeg_encoder.evaluation import category_centres, evaluate, nearest_category, retrieval


def test_retrieval_ranks():
    gallery = torch.eye(6)
    found = torch.tensor([[3.0, 2, 1, 0, 0, 0], [2.0, 3, 1, 0, 0, 0]])
    result = retrieval(found, gallery, torch.tensor([0, 0]))
    assert result["top1"] == 0.5
    assert result["top5"] == 1.0
    assert result["chance_top1"] == pytest.approx(1 / 6)


def test_centres_and_nearest_category():
    embeddings = torch.tensor([[1.0, 0], [3.0, 0], [0, 1.0]])
    centres = category_centres(embeddings, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(centres, torch.tensor([[2.0, 0], [0, 1.0]]))
    assert nearest_category(embeddings, centres, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_signal_is_above_the_shuffled_control():
    generator = torch.Generator().manual_seed(0)
    labels = np.repeat(np.arange(10), 20)
    centres = torch.randn(10, 32, generator=generator)
    pictures = centres[labels] + 0.5 * torch.randn(200, 32, generator=generator)
    found = pictures + 0.5 * torch.randn(200, 32, generator=generator)
    ids = np.asarray([f"x_{i}" for i in range(200)])
    train = centres[labels] + 0.5 * torch.randn(200, 32, generator=generator)
    gallery = dict(zip(ids.tolist(), pictures, strict=True))
    result = evaluate(found, ids, labels, gallery, train, labels, n_categories=10)
    assert result["eeg"]["category_top1"] > 0.9
    assert result["eeg"]["retrieval"]["top1"] > 0.8
    assert result["shuffled"]["category_top1"] < 0.2
    assert result["shuffled"]["retrieval"]["top1"] < 0.05
    assert abs(result["shuffled"]["cosine"]) < 0.1
    assert result["tier"] == "inductive"
