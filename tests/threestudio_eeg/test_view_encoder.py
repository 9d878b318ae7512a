"""Camera tokens: continuous around the circle, distinct between sides, saved and read back."""

from __future__ import annotations

import pytest
import torch

from threestudio_eeg.view_encoder import ViewEncoder
from threestudio_eeg.view_tokens import append_view_tokens


@pytest.fixture
def encoder() -> ViewEncoder:
    torch.manual_seed(0)
    return ViewEncoder(24, n_tokens=3, hidden=16).eval()


def at(encoder: ViewEncoder, *azimuth: float, elevation: float = 10.0, distance: float = 2.0):
    a = torch.tensor(azimuth)
    return encoder(torch.full_like(a, elevation), a, torch.full_like(a, distance))


def test_shape(encoder):
    assert at(encoder, 0.0, 90.0).shape == (2, 3, 24)
    assert encoder.null_tokens.shape == (3, 24)


def test_whole_turns_change_nothing(encoder):
    torch.testing.assert_close(at(encoder, -170.0), at(encoder, 190.0), atol=1e-4, rtol=1e-4)


def test_every_side_has_its_own_tokens(encoder):
    tokens = at(encoder, 0.0, 90.0, 180.0, 270.0).flatten(1)
    apart = torch.cdist(tokens, tokens) + torch.eye(4) * 9
    assert float(apart.detach().min()) > 0.1


def test_elevation_and_distance_matter(encoder):
    assert not torch.allclose(at(encoder, 0.0), at(encoder, 0.0, elevation=40.0))
    assert not torch.allclose(at(encoder, 0.0), at(encoder, 0.0, distance=2.1))


def test_neighbouring_angles_have_neighbouring_tokens(encoder):
    near = (at(encoder, 30.0) - at(encoder, 30.5)).norm()
    far = (at(encoder, 30.0) - at(encoder, 75.0)).norm()
    assert near < far / 10


def test_save_and_load(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "views", dtype=torch.float32)
    again = ViewEncoder.from_pretrained(tmp_path / "views")
    assert torch.equal(at(again, 45.0), at(encoder, 45.0))
    assert torch.equal(again.null_tokens, encoder.null_tokens)


def test_stored_in_half_read_as_float(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "views")
    again = ViewEncoder.from_pretrained(tmp_path / "views")
    assert again.null_tokens.dtype == torch.float32
    torch.testing.assert_close(at(again, 45.0), at(encoder, 45.0), atol=1e-2, rtol=1e-2)


def test_tokens_are_appended_to_both_halves(encoder):
    text = torch.randn(4, 5, 24)
    views = torch.tensor([0.0, 20.0]), torch.tensor([0.0, 180.0]), torch.tensor([2.0, 2.0])
    out = append_view_tokens(text, encoder, *views)
    assert torch.equal(out[:, :5], text)
    torch.testing.assert_close(out[:2, 5:], encoder(*views))
    assert torch.equal(out[2:, 5:], encoder.null_tokens.expand(2, -1, -1))
    off = append_view_tokens(text, encoder, *views, view_dependent_prompting=False)
    assert torch.equal(off[:, 5:], encoder.null_tokens.expand(4, -1, -1))
    assert append_view_tokens(text, None, *views) is text
