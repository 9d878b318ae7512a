"""Pictures sampled and distilled without any 3D."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg.cli import app
from threestudio_eeg.images.cameras import PictureCameras
from threestudio_eeg.images.distilling import distil_pictures
from threestudio_eeg.images.making import ImageOptions, make_images
from threestudio_eeg.images.sampling import initial_noise, sample_pictures
from threestudio_eeg.noise import NoiseSchedule


@pytest.fixture(autouse=True)
def _builtin(monkeypatch):
    monkeypatch.setenv("THREESTUDIO_EEG_HOST", "builtin")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return tiny_pipeline(tmp_path_factory.mktemp("images") / "pipeline")


@pytest.fixture(scope="module")
def conditioning(pipeline):
    return tiny_conditioning(pipeline.parent / "eeg.safetensors", pipeline)


def options(pipeline, out, **more):
    given = {"prompt": "a red mug", "steps": 3, "quiet": True, "pipeline": str(pipeline)}
    return ImageOptions(out, **{**given, **more})


class Knowing(nn.Module):
    """A guidance whose teacher knows one picture of latents, ``target``, and its true score."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = target
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.schedule = NoiseSchedule((1 - betas).cumprod(0))
        self.pipeline = self
        self.latent_size, self.device = target.shape[-1], torch.device("cpu")
        self.unet = self.config = self
        self.in_channels = target.shape[0]
        self.n_updates = 0

    def update_step(self, epoch: int, step: int) -> None:
        self.n_updates += 1

    def prompt(self, *_):
        self.guided = None
        return self

    def teacher(self, noisy, t, _context):
        abar = self.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (noisy - abar.sqrt() * self.target) / (1 - abar).sqrt()

    def decode(self, latents):
        return latents

    def forward(self, rgb, _prompt, rgb_as_latents, **_):
        latents = rgb.permute(0, 3, 1, 2)
        grad = (latents - self.target).detach()
        return {"loss_sds": (grad * latents).sum(), "grad_norm": grad.norm(), "min_step": 1}


def around(n=2, views=3):
    return PictureCameras.around(n, views, elevation=15, distance=2, device="cpu")


def test_sampling_reaches_what_the_teacher_knows():
    target = torch.linspace(-1, 1, 64).view(1, 8, 8)
    calls = []
    found = sample_pictures(
        Knowing(target), None, around(), steps=10, on_step=lambda: calls.append(1)
    )
    torch.testing.assert_close(
        found.permute(0, 3, 1, 2), target.expand(6, 1, 8, 8), atol=1e-4, rtol=0
    )
    assert len(calls) == 10


def test_particles_go_where_the_guidance_pulls():
    target = torch.linspace(-1, 1, 64).view(1, 8, 8)
    guidance = Knowing(target)
    done = distil_pictures(guidance, None, around(), steps=300, lr=0.05)
    assert (done.pictures.permute(0, 3, 1, 2) - target).abs().max() < 0.05
    assert guidance.n_updates == 300
    assert done.curve[-1]["grad_norm"] < 0.05 * done.curve[0]["grad_norm"]


def test_views_of_a_particle_start_alike_and_particles_do_not():
    noise = initial_noise(Knowing(torch.zeros(4, 8, 8)), around(n=2, views=3), seed=0)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[3])


@pytest.mark.parametrize(
    ("method", "space"), [("sample", "latent"), ("sds", "pixel"), ("vsd", "latent")]
)
def test_every_method_writes_its_pictures(pipeline, conditioning, tmp_path, method, space):
    arguments = ["images", "--conditioning", conditioning, "--trial", "trial-1", "--n", 2]
    arguments += ["--views", 2, "--steps", 2, "--method", method, "--space", space]
    arguments += ["--pipeline", pipeline, "--out", tmp_path / "out", "--device", "cpu"]
    result = CliRunner().invoke(app, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "images.json").read_text())
    assert content["prompt"]["trial"]["id"] == "trial-1"
    places = [(p["particle"], p["azimuth"]) for p in content["pictures"]]
    assert places == [(0, 0), (0, 180), (1, 0), (1, 180)]
    assert -1 <= content["similarity"] <= 1
    assert {"agreement_of_particles", "agreement_of_views"} <= set(content)
    for entry in content["pictures"]:
        with Image.open(tmp_path / "out" / entry["file"]) as picture:
            assert picture.size == (16, 16)
    assert (tmp_path / "out" / "grid.png").is_file()


def test_the_seed_decides_and_text_needs_no_camera(pipeline, tmp_path):
    pictures = []
    for number, seed in enumerate((1, 1, 2)):
        made = make_images(options(pipeline, tmp_path / str(number), n=1, seed=seed))
        assert made["pictures"] == [{"file": "000.png", "particle": 0}]
        assert made["prompt"] == "a red mug"
        with Image.open(tmp_path / str(number) / "000.png") as picture:
            pictures.append(np.asarray(picture))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()


def test_vsd_trains_its_adapters(pipeline, tmp_path, monkeypatch):
    from threestudio_eeg.guidance import VSDGuidance

    made = []
    configure = VSDGuidance.configure_adapters
    monkeypatch.setattr(
        VSDGuidance, "configure_adapters", lambda self: (configure(self), made.append(self))[0]
    )
    make_images(options(pipeline, tmp_path, n=1, method="vsd", steps=3, lora_lr=0.01))
    moved = [p for p in made[0].trained_parameters() if p.abs().sum() > 0 and p.grad is not None]
    assert any(float(p.grad.abs().sum()) > 0 for p in moved)


def test_descending_timesteps_descend(pipeline, tmp_path, monkeypatch):
    from threestudio_eeg.guidance import SDSGuidance

    seen = []
    draw = SDSGuidance.draw

    def spy(self, *arguments):
        draws = draw(self, *arguments)
        seen.append(draws.t.tolist())
        return draws

    monkeypatch.setattr(SDSGuidance, "draw", spy)
    make_images(options(pipeline, tmp_path, method="sds", steps=5, timesteps="descending"))
    assert [set(t) for t in seen] == [{980}, {740}, {500}, {260}, {20}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "gan"}, "method: found gan, expected sample, sds, vsd"),
        ({"space": "wavelet"}, "space"),
        ({"timesteps": "up"}, "timesteps"),
        ({"prompt": None}, "found neither"),
        ({"n": 0}, "n: found 0"),
        ({"views": -1}, "views: found -1"),
    ],
)
def test_bad_options_are_named_before_a_file_is_written(pipeline, tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        make_images(options(pipeline, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_an_unknown_trial_is_named(pipeline, conditioning, tmp_path):
    given = {"prompt": None, "conditioning": conditioning, "trial": "nobody"}
    with pytest.raises(InputError, match=r"eeg.safetensors: trial: found nobody"):
        make_images(options(pipeline, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()
