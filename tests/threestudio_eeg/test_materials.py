"""Materials and backgrounds."""

from __future__ import annotations

import pytest
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.registry import find

DIRECTIONS = torch.nn.functional.normalize(torch.randn(4, 8, 8, 3), dim=-1)


def lit(**cfg):
    return find("diffuse-with-point-light-material")(cfg)


def scene():
    up = torch.tensor([[0.0, 0.0, 1.0]])
    return {
        "features": torch.zeros(1, 3),
        "positions": torch.zeros(1, 3),
        "shading_normal": up,
        "light_positions": torch.tensor([[3.0**0.5, 0.0, 1.0]]),
    }


def test_no_material_is_the_activation():
    features = torch.randn(5, 3)
    material = find("no-material")({})
    torch.testing.assert_close(material(features=features), features.sigmoid())
    assert not material.requires_normal
    with pytest.raises(InputError, match="features"):
        material(features=torch.randn(5, 4))


def test_no_material_with_network():
    mlp = {"otype": "VanillaMLP", "n_neurons": 8, "n_hidden_layers": 1}
    material = find("no-material")({"input_feature_dims": 6, "mlp_network_config": mlp})
    assert material(features=torch.randn(5, 6)).shape == (5, 3)
    assert material.export(features=torch.randn(5, 6))["albedo"].shape == (5, 3)


def test_lambert_is_written_out():
    """Light at 60 degrees: 0.9 / 2 + 0.1 of an albedo of one half."""
    colour = lit(ambient_only_steps=0).eval()(**scene())
    torch.testing.assert_close(colour, torch.full((1, 3), 0.5 * (0.9 * 0.5 + 0.1)))


def test_light_from_behind_leaves_the_ambient_part():
    inputs = scene()
    inputs["shading_normal"] = -inputs["shading_normal"]
    torch.testing.assert_close(lit().eval()(**inputs), torch.full((1, 3), 0.05))


def test_shadings_and_ambient_ratio():
    material = lit()
    assert torch.allclose(material(**scene(), shading="albedo"), torch.tensor(0.5))
    assert torch.allclose(material(**scene(), shading="textureless"), torch.tensor(0.55))
    ambient = material(**scene(), shading="diffuse", ambient_ratio=1.0)
    assert torch.allclose(ambient, torch.tensor(0.5))


def test_ambient_only_at_first():
    torch.manual_seed(0)
    material = lit(ambient_only_steps=10, diffuse_prob=1.0)
    material.update_step(0, 9)
    assert all(torch.allclose(material(**scene()), torch.tensor(0.5)) for _ in range(5))
    material.update_step(0, 10)
    seen = {round(float(material(**scene()).mean()), 3) for _ in range(40)}
    assert seen == {0.275, 0.55}


def test_solid_background():
    background = find("solid-color-background")({"color": [0.2, 0.4, 0.6], "learned": True})
    colour = background(dirs=DIRECTIONS)
    torch.testing.assert_close(colour[3, 5, 2], torch.tensor([0.2, 0.4, 0.6]))
    assert [name for name, _ in background.named_parameters()] == ["env_color"]
    assert list(find("solid-color-background")({}).state_dict()) == ["env_color"]


@pytest.mark.parametrize("name", ["solid-color-background", "neural-environment-map-background"])
def test_random_colours_are_flat_and_differ_between_pictures(name):
    background = find(name)({"random_aug": True, "random_aug_prob": 1.0})
    colour = background(dirs=DIRECTIONS)
    assert torch.equal(colour, colour[:, :1, :1].expand_as(colour))
    assert len({tuple(c.tolist()) for c in colour[:, 0, 0]}) == 4
    plain = background.eval()(dirs=DIRECTIONS)
    assert not torch.equal(plain, colour)


def test_environment_map():
    background = find("neural-environment-map-background")({"eval_color": [1, 0, 0]})
    colour = background(dirs=DIRECTIONS)
    assert colour.shape == DIRECTIONS.shape
    assert ((colour > 0) & (colour < 1)).all()
    assert colour.std(dim=(0, 1, 2)).min() > 0
    fixed = background.eval()(dirs=DIRECTIONS)
    assert torch.equal(fixed, torch.tensor([1.0, 0, 0]).expand_as(fixed))
