import pytest
import torch

from threestudio_eeg.compat import cross_products


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_cameras_look_where_they_should_in_any_number(number):
    """As threestudio has it: right = lookat x up, for a batch of cameras and one up."""
    lookat = torch.randn(number, 3, generator=torch.Generator().manual_seed(number))
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand(number, 3)
    expected = torch.linalg.cross(lookat, up, dim=-1)
    assert cross_products.REMEDY.reason("cpu")
    cross_products.apply("cpu")
    torch.testing.assert_close(torch.cross(lookat, up), expected)
    torch.testing.assert_close(torch.cross(lookat, up[:1]), expected)


def test_an_axis_that_is_given_is_taken():
    left, right = torch.randn(3, 3), torch.randn(3, 3)
    expected = torch.cross(left, right, dim=0)
    cross_products.apply("cpu")
    torch.testing.assert_close(torch.cross(left, right, dim=0), expected)
    torch.testing.assert_close(torch.cross(left, right, 0), expected)


def test_without_the_remedy_three_cameras_are_wrong():
    """The reason for the remedy; when torch changes its mind, it can go."""
    left, right = torch.randn(3, 3), torch.randn(3, 3)
    assert not torch.allclose(torch.cross(left, right), torch.linalg.cross(left, right, dim=-1))
