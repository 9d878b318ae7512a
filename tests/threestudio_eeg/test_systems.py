import math

import pytest
import torch

from eeg_encoder.errors import InputError
from threestudio_eeg.builtin.config import load_config
from threestudio_eeg.builtin.optimizers import make_optimizer, make_scheduler
from threestudio_eeg.builtin.registry import load_builtin
from threestudio_eeg.builtin.regularisers import opaque, orient, sparsity, z_variance
from threestudio_eeg.builtin.systems import DreamFusion, FiniteLosses, ProlificDreamer

from .toy_parts import ToyExperiment


def system(tmp_path, cls=ProlificDreamer, **changes):
    changes = {f"system.{key.replace('__', '.')}": value for key, value in changes.items()}
    return cls(load_config(ToyExperiment(tmp_path, changes).write()).system)


def batch():
    return {"rays_d": torch.randn(1, 4, 4, 3), "height": 4, "width": 4}


def step(model):
    return model.training_step(batch(), 0)


@pytest.mark.parametrize("cls", [ProlificDreamer, DreamFusion])
def test_the_loss_is_the_weighted_sum(tmp_path, cls, monkeypatch):
    model = system(tmp_path, cls)
    logged = {}
    monkeypatch.setattr(
        model, "log", lambda name, value: logged.update({name: torch.as_tensor(value).item()})
    )
    total = step(model)
    weights = {"vsd": 1.0, "lora": 1.0, "sparsity": 1.0, "z_variance": 0.1}
    assert {k for k in logged if "loss" in k} == {f"train/loss_{name}" for name in weights}
    expected = sum(weight * logged[f"train/loss_{name}"] for name, weight in weights.items())
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert logged["train_params/lambda_z_variance"] == pytest.approx(0.1)


def test_the_guidance_is_trained_and_saved(tmp_path):
    model = system(tmp_path)
    assert any(key.startswith("guidance.adapter") for key in model.state_dict())
    groups = model.configure_optimizers().param_groups
    assert [(g["name"], g["lr"], g["betas"]) for g in groups] == [
        ("geometry", 0.01, (0.9, 0.99)),
        ("guidance", 0.001, (0.9, 0.99)),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "shape"}, "stage: found shape, expected one of coarse, geometry, texture"),
        ({"stage": "geometry"}, "geometry_type: found toy-geometry, expected a geometry with a m"),
        ({"geometry_convert_from": "x.ckpt"}, "toy-geometry: geometry_convert_from: found x.ckpt"),
        ({"n_particles": 0}, "n_particles: found 0"),
        ({"geometri": {}}, "geometri: found an unknown key, expected geometry"),
        ({"renderer__radios": 1}, "config of toy-renderer: radios"),
    ],
)
def test_bad_configs_are_named(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        system(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss__lambda_sparsty": 1.0}, "lambda_sparsty: found an unknown loss, expected lambda_s"),
        ({"loss__lambda_orient": 1.0}, "lambda_orient: found a render without normals"),
        ({"guidance__nan_at": 0}, "training step 0: loss_vsd: found nan"),
    ],
)
def test_bad_losses_are_named(tmp_path, changes, words):
    model = system(tmp_path, **changes)
    model.log = lambda *_: None
    model.do_update_step(0, 0)
    with pytest.raises(InputError, match=words):
        step(model)


def test_a_loss_without_a_weight_is_named(tmp_path):
    model = system(tmp_path)
    del model.cfg.loss["lambda_lora"]
    with pytest.raises(InputError, match="lambda_lora: found nothing"):
        step(model)


def test_infinity_is_not_finite():
    with pytest.raises(InputError, match="training step 3: b: found -inf"):
        FiniteLosses().add(3, {"a": torch.tensor(1.0), "b": torch.tensor(-math.inf)})


def test_regularisers_by_hand():
    opacity = torch.tensor([[0.0], [0.5], [1.0]])
    assert sparsity({"opacity": opacity}).item() == pytest.approx(
        (0.1 + math.sqrt(0.26) + math.sqrt(1.01)) / 3
    )
    edge = -(1e-3 * math.log(1e-3) + 0.999 * math.log(0.999))
    assert opaque({"opacity": opacity}).item() == pytest.approx((2 * edge + math.log(2)) / 3, 1e-4)
    out = {"opacity": opacity, "z_variance": torch.tensor([[5.0], [7.0], [2.0]])}
    assert z_variance(out).item() == 2.0
    assert z_variance({**out, "opacity": torch.zeros(3, 1)}).item() == 0.0
    undefined = torch.tensor([[math.nan], [math.inf], [2.0]], requires_grad=True)
    z_variance({"opacity": opacity, "z_variance": undefined}).backward()
    assert undefined.grad.flatten().tolist() == [0.0, 0.0, 1.0]
    nothing = {"opacity": torch.zeros(3, 1), "z_variance": undefined}
    assert z_variance(nothing).item() == 0.0
    samples = {
        "normal": torch.tensor([[0.0, 0, 1], [0, 0, 1]]),
        "t_dirs": torch.tensor([[0.0, 0, 1], [0, 0, -1]]),
        "weights": torch.tensor([[0.5], [0.5]]),
        "opacity": opacity,
    }
    assert orient(samples).item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "AdmW"}, "name: found AdmW, expected Adam"),
        ({"name": "Adam", "params": {"wieght": {}}}, "params.wieght: found wieght"),
        ({"name": "Adam", "args": {"lrr": 1}}, "Adam: found"),
        ({"name": "Adam", "params": {"0": {}, "0.weight": {}}}, "more than one parameter group"),
        (
            {"name": "AdamW", "params": {"0": {"lr": [0, 0.01, 0.001, 100]}}},
            r"system.optimizer: params.0.lr: found \[0, 0.01, 0.001, 100\], expected a number",
        ),
        ({"name": "Adam", "params": {"0": {"lr": "fast"}}}, "params.0.lr: found 'fast'"),
        ({"name": "Adam", "params": {"0": {"lr": -0.1}}}, "params.0.lr: found -0.1"),
        ({"name": "Adam", "args": {"lr": [0, 0.01, 0.001, 100]}}, "optimizer: args.lr: found"),
    ],
)
def test_bad_optimizers_are_named(config, words):
    with pytest.raises(InputError, match=words):
        make_optimizer(config, torch.nn.Sequential(torch.nn.Linear(1, 1)))


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_takes_one_call_unless_it_is_told_how(name):
    layer = torch.nn.Linear(2, 2)
    assert make_optimizer({"name": name}, layer).param_groups[0]["fused"]
    asked = make_optimizer({"name": name, "args": {"foreach": True}}, layer).param_groups[0]
    assert asked["foreach"]
    assert not asked["fused"]


def test_adam_in_one_call_steps_as_the_plain_one():
    config = {"name": "AdamW", "args": {"lr": 0.1, "eps": 1e-15, "weight_decay": 0.3}}
    moved = []
    for plain in (False, True):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 3)
        args = {**config["args"], **({"fused": False} if plain else {})}
        optimizer = make_optimizer({**config, "args": args}, layer)
        for _ in range(5):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        moved.append(layer.weight.detach())
    torch.testing.assert_close(*moved)


def test_schedulers_chain():
    optimizer = make_optimizer({"name": "SGD", "args": {"lr": 1.0}}, torch.nn.Linear(1, 1))
    children = [
        {"name": "LinearLR", "args": {"start_factor": 0.1, "total_iters": 2}},
        {"name": "ExponentialLR", "args": {"gamma": 0.5}},
    ]
    config = {
        "name": "SequentialLR",
        "interval": "step",
        "schedulers": children,
        "milestones": [2],
    }
    made = make_scheduler(config, optimizer)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made["scheduler"].step()
    assert made["interval"] == "step"
    assert rates == pytest.approx([0.1, 0.55, 1.0, 0.5, 0.25])
    with pytest.raises(InputError, match="ExponentialLr"):
        make_scheduler({"name": "ExponentialLr"}, optimizer)


def test_every_part_is_registered():
    assert set(load_builtin()) >= {
        "random-camera-datamodule",
        "implicit-volume",
        "nerf-volume-renderer",
        "no-material",
        "diffuse-with-point-light-material",
        "solid-color-background",
        "neural-environment-map-background",
        "stable-diffusion-prompt-processor",
        "prolificdreamer-system",
        "dreamfusion-system",
        "mesh-exporter",
        "occlusion-mesh-exporter",
        "dummy-exporter",
    }
