from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg.builtin.base import device_scope
from threestudio_eeg.guidance import SDSGuidance, VSDGuidance
from threestudio_eeg.noise import NoiseSchedule
from threestudio_eeg.prompt_processor import EEGPromptProcessor

B = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="module")
def prompts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    file = tiny_conditioning(tmp_path_factory.mktemp("eeg") / "eeg.safetensors", folder)
    common = {"conditioning": str(file), "pretrained_model_name_or_path": str(folder)}
    with device_scope("cpu"):
        return [EEGPromptProcessor({**common, "trial": i})() for i in range(2)]


def guidance(kind: type, folder: Path, **config: Any) -> Any:
    torch.manual_seed(3)
    with device_scope("cpu"):
        return kind({"pretrained_model_name_or_path": str(folder), **config})


def views(n: int = B) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "elevation": torch.full((n,), 10.0),
        "azimuth": torch.linspace(-90, 90, n),
        "camera_distances": torch.full((n,), 2.0),
        "c2w": torch.randn(n, 4, 4, generator=generator),
        "mvp_mtx": torch.randn(n, 4, 4, generator=generator),
    }


def angles() -> tuple[torch.Tensor, ...]:
    batch = views()
    return batch["elevation"], batch["azimuth"], batch["camera_distances"]


def render(n: int = B, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.rand(n, size, size, 3, generator=generator).requires_grad_(True)


def guidance_batch(g: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The latents, timesteps and noise that a seeded ``forward`` with the VAE's mean will draw."""
    latents = g.encode(render().permute(0, 3, 1, 2)).detach()
    torch.manual_seed(11)
    t = torch.randint(g.min_step, g.max_step + 1, (B,))
    return latents, t, torch.randn_like(latents)


def by_hand(g: Any, prompt: Any, noisy: torch.Tensor, t: torch.Tensor, scale: float) -> Any:
    """The teacher, one branch at a time."""
    conditional, unconditional = prompt.get_text_embeddings(*angles()).chunk(2)
    with torch.no_grad():
        c, u = (
            g.pipeline.unet(noisy, t, encoder_hidden_states=context).sample
            for context in (conditional, unconditional)
        )
    return u + scale * (c - u)


WEIGHTS = {
    "sds": lambda abar: 1 - abar,
    "uniform": lambda abar: torch.ones_like(abar),
    "x0": lambda abar: ((1 - abar) / abar).sqrt(),
}


def schedule_by_hand() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


@pytest.mark.parametrize("strategy", list(WEIGHTS))
def test_vsd_gradient_is_the_formula(folder: Path, prompts: list[Any], strategy: str) -> None:
    g = guidance(VSDGuidance, folder, weighting_strategy=strategy, sample_posterior=False)
    torch.nn.init.normal_(g.lora_layers["layers"][0]["to_q_lora"]["up"].weight)
    latents, t, noise = guidance_batch(g)
    abar = schedule_by_hand()[t].view(-1, 1, 1, 1)
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    teacher = by_hand(g, prompts[0], noisy, t, 7.5)
    plain = prompts[0].get_text_embeddings(*angles(), False).chunk(2)[0]
    with torch.no_grad():
        lora = g._frozen[0](noisy, t, plain, views()["c2w"].flatten(1))
    expected = WEIGHTS[strategy](abar) * (teacher - lora)

    torch.manual_seed(11)
    out = g(render(), prompts[0], **views())
    assert not torch.allclose(lora, by_hand(g, prompts[0], noisy, t, 1.0), atol=1e-3)
    torch.testing.assert_close(out["grad_norm"], expected.norm(), rtol=1e-3, atol=1e-5)
    half_square = 0.5 * expected.square().sum() / B
    torch.testing.assert_close(out["loss_vsd"], half_square, rtol=1e-3, atol=1e-5)


def test_sds_gradient_on_the_latents_is_the_formula(folder: Path, prompts: list[Any]) -> None:
    g = guidance(SDSGuidance, folder, guidance_scale=4.0)
    latents = torch.randn(B, 8, 8, 4, requires_grad=True)
    torch.manual_seed(11)
    t = torch.randint(g.min_step, g.max_step + 1, (B,))
    x = latents.detach().permute(0, 3, 1, 2)
    noise = torch.randn_like(x)
    abar = schedule_by_hand()[t].view(-1, 1, 1, 1)
    noisy = abar.sqrt() * x + (1 - abar).sqrt() * noise
    expected = (1 - abar) * (by_hand(g, prompts[0], noisy, t, 4.0) - noise) / B
    torch.manual_seed(11)
    g(latents, prompts[0], **views(), rgb_as_latents=True)["loss_sds"].backward()
    torch.testing.assert_close(latents.grad.permute(0, 3, 1, 2), expected, rtol=1e-3, atol=1e-5)


def test_x0_weighting_pulls_the_latents_to_the_one_step_estimate(
    folder: Path, prompts: list[Any]
) -> None:
    g = guidance(SDSGuidance, folder, weighting_strategy="x0", min_step_percent=0.4)
    latents = torch.randn(B, 4, 8, 8)
    noised = g.add_noise(latents, g.draw(B))
    teacher = by_hand(g, prompts[0], noised.latents, noised.t, 10.0)
    pulled = latents - g.gradient(teacher, noised.noise, noised.t)
    clean = g.schedule.clean(noised.latents, teacher, noised.t)
    torch.testing.assert_close(pulled, clean, rtol=1e-3, atol=1e-3)


def test_vsd_with_a_fresh_lora_vanishes_without_guidance_and_views(
    folder: Path, prompts: list[Any]
) -> None:
    g = guidance(VSDGuidance, folder, guidance_scale=1.0, view_dependent_prompting=False)
    for name in ("weight", "bias"):
        torch.nn.init.zeros_(getattr(g.camera_embedding.module.linear_2, name))
    assert g(render(), prompts[0], **views())["grad_norm"] < 1e-4


def test_eeg_changes_only_the_conditional_half(folder: Path, prompts: list[Any]) -> None:
    g = guidance(VSDGuidance, folder)
    contexts = [g.prompt(p, angles(), views()).guided.chunk(2) for p in prompts]
    assert not torch.allclose(contexts[0][0], contexts[1][0])
    assert torch.equal(contexts[0][1], contexts[1][1])


@pytest.mark.parametrize("kind", [VSDGuidance, SDSGuidance])
@pytest.mark.parametrize(("n", "size"), [(1, 16), (3, 24)])
def test_a_gradient_reaches_the_render(
    folder: Path, prompts: list[Any], kind: type, n: int, size: int
) -> None:
    rgb = render(n, size)
    g = guidance(kind, folder)
    out = g(rgb, prompts[0], **views(n))
    out[f"loss_{g.kind}"].backward()
    assert rgb.grad.isfinite().all()
    assert (rgb.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad is None for p in g.parameters())


def test_the_lora_loss_trains_the_lora_and_not_the_render(folder: Path, prompts: list[Any]) -> None:
    g = guidance(VSDGuidance, folder, lora_n_timestamp_samples=4)
    rgb = render()
    g(rgb, prompts[0], **views())["loss_lora"].backward()
    assert rgb.grad is None
    latents = g.encode(rgb.permute(0, 3, 1, 2)).detach()
    prompt = g.prompt(prompts[0], angles(), views())
    optimizer = torch.optim.AdamW(g.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        torch.manual_seed(0)
        loss = g.lora_loss(latents, prompt, g.draw(B))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_sharing_the_noise_gives_the_same_score_with_one_pass_less(
    folder: Path, prompts: list[Any]
) -> None:
    outs = []
    for shares in (False, True):
        g = guidance(VSDGuidance, folder, sample_posterior=False, lora_shares_noise=shares)
        calls: list[int] = []
        g.pipeline.unet.register_forward_hook(lambda *a, calls=calls: calls.append(1))
        torch.manual_seed(11)
        outs.append((g(render(), prompts[0], **views()), len(calls)))
    (separate, n_separate), (shared, n_shared) = outs
    torch.testing.assert_close(separate["grad_norm"], shared["grad_norm"])
    assert (n_separate, n_shared) == (3, 2)
    assert shared["loss_lora"].requires_grad


def test_camera_drop_is_per_view(folder: Path, prompts: list[Any], monkeypatch: Any) -> None:
    g = guidance(VSDGuidance, folder, lora_camera_drop=0.5)
    seen: list[torch.Tensor] = []
    inner = g._lora
    monkeypatch.setattr(g, "_lora", lambda x, t, c, k, w: (seen.append(k), inner(x, t, c, k, w))[1])
    prompt = g.prompt(prompts[0], angles(), views())
    for seed in range(10):
        torch.manual_seed(seed)
        g.lora_loss(torch.zeros(B, 4, 8, 8), prompt, g.draw(B))
    dropped = torch.stack([(camera == 0).all(1) for camera in seen])
    assert (dropped[:, 0] != dropped[:, 1]).any()
    assert 0 < dropped.float().mean() < 1


def test_guiding_the_lora_by_its_camera(folder: Path, prompts: list[Any]) -> None:
    g = guidance(VSDGuidance, folder, guidance_scale_lora=3.0)
    noisy, t = torch.randn(B, 4, 8, 8), torch.tensor([100, 900])
    prompt = g.prompt(prompts[0], angles(), views())
    with torch.no_grad():
        score = g.lora_score(noisy, t, prompt)
        camera = g._lora(noisy, t, prompt.plain, prompt.camera)
        without = g._lora(noisy, t, prompt.plain, torch.zeros_like(prompt.camera))
    torch.testing.assert_close(score, without + 3 * (camera - without), rtol=1e-3, atol=1e-4)


def test_the_camera_condition_reads_the_named_matrix(folder: Path, prompts: list[Any]) -> None:
    for kind, name in (("extrinsics", "c2w"), ("mvp", "mvp_mtx")):
        g = guidance(VSDGuidance, folder, camera_condition_type=kind)
        camera = g.prompt(prompts[0], angles(), views()).camera
        assert torch.equal(camera, views()[name].flatten(1))


def test_state_dict_holds_lora_and_camera_only_and_restores(
    folder: Path, prompts: list[Any]
) -> None:
    g = guidance(VSDGuidance, folder)
    for parameter in g.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = g.state_dict()
    assert {name.split(".")[0] for name in state} == {"lora_layers", "camera_embedding"}
    assert len(state) == len(list(g.parameters())) > 0
    again = guidance(VSDGuidance, folder)
    noisy, t = torch.randn(B, 4, 8, 8), torch.tensor([100, 900])
    prompt = g.prompt(prompts[0], angles(), views())
    with torch.no_grad():
        before = again.lora_score(noisy, t, prompt)
        again.load_state_dict(state)
        after, wanted = again.lora_score(noisy, t, prompt), g.lora_score(noisy, t, prompt)
    assert torch.equal(after, wanted)
    assert not torch.allclose(before, wanted)
    assert not list(guidance(SDSGuidance, folder).state_dict())


def test_schedules_follow_the_step_and_updating_twice_changes_nothing(folder: Path) -> None:
    g = guidance(
        VSDGuidance, folder, max_step_percent=[5, 0.98, 0.5, 6], grad_clip=[0, 2.0, 1.0, 10]
    )
    assert (g.min_step, g.max_step, g.grad_clip) == (20, 980, 2.0)
    for _ in range(2):
        g.update_step(0, 10)
        assert (g.min_step, g.max_step, g.grad_clip) == (20, 500, 1.0)


@pytest.mark.parametrize("kind", [VSDGuidance, SDSGuidance])
def test_the_guidance_scale_may_be_a_schedule(
    folder: Path, prompts: list[Any], kind: type, monkeypatch: Any
) -> None:
    g = guidance(kind, folder, guidance_scale=[2, 8.0, 4.0, 6, 1.0, 10])
    latents, t, noise = guidance_batch(g)
    noisy = g.schedule.add_noise(latents, noise, t)
    context = prompts[0].get_text_embeddings(*angles())
    batches = []
    forward = g._unet
    monkeypatch.setattr(g, "_unet", lambda x, *rest: batches.append(len(x)) or forward(x, *rest))
    for step, scale in ((0, 8.0), (4, 6.0), (8, 2.5), (10, 1.0), (99, 1.0)):
        g.update_step(0, step)
        assert g.guidance_scale == scale
        with torch.no_grad():
            guided = g.teacher(noisy, t, context)
        wanted = by_hand(g, prompts[0], noisy, t, scale)
        torch.testing.assert_close(guided, wanted, atol=1e-4, rtol=1e-4)
    assert batches == [2 * B] * 3 + [B] * 2


def test_sqrt_anneal_goes_from_max_to_min(folder: Path) -> None:
    g = guidance(SDSGuidance, folder, sqrt_anneal=True, trainer_max_steps=100)
    steps = []
    for step in (0, 25, 100, 120):
        g.update_step(0, step)
        assert g.min_step == g.max_step
        steps.append(g.max_step)
    assert steps == [980, 500, 20, 20]


def test_grad_clip_and_max_weight_bound_the_gradient(folder: Path) -> None:
    t, ones = torch.tensor([980, 20]), torch.ones(B, 4, 8, 8)
    g = guidance(SDSGuidance, folder, weighting_strategy="x0", max_weight=3.0)
    grad = g.gradient(ones, torch.zeros_like(ones), t)
    assert grad[0].unique().tolist() == [3.0]
    assert grad[1].max() < 0.2
    clipped = guidance(SDSGuidance, folder, weighting_strategy="x0", grad_clip=0.5)
    assert clipped.gradient(-ones, 0 * ones, t, clipped.grad_clip).min() == -0.5


def test_shared_timestep(folder: Path) -> None:
    g = guidance(SDSGuidance, folder, shared_t=True)
    assert all(len(g.draw(4).t.unique()) == 1 for _ in range(5))


def test_a_gradient_that_is_not_finite_is_an_error_naming_the_step(
    folder: Path, prompts: list[Any]
) -> None:
    g = guidance(VSDGuidance, folder)
    g.update_step(0, 42)
    rgb = render().detach()
    rgb[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="gradient norm at step 42: found nan"):
        g(rgb, prompts[0], **views())


def test_samples_are_pictures_and_repeat_with_their_seed(folder: Path, prompts: list[Any]) -> None:
    g = guidance(VSDGuidance, folder, sample_steps=4)
    one, same, other = (g.sample(prompts[0], **views(), seed=s) for s in (1, 1, 2))
    assert one.shape == (B, 16, 16, 3)
    assert one.min() >= 0
    assert one.max() <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert g.sample_lora(prompts[0], **views(), seed=1).shape == (B, 16, 16, 3)


@pytest.mark.parametrize("kind", [VSDGuidance, SDSGuidance])
def test_image_loss_and_evaluation(folder: Path, prompts: list[Any], kind: type) -> None:
    g = guidance(kind, folder, use_img_loss=True, sample_steps=3, max_items_eval=1)
    rgb = render()
    out = g(rgb, prompts[0], **views(), guidance_eval=True)
    out[f"loss_{g.kind}_img"].backward()
    assert rgb.grad.abs().sum() > 0
    shown = out["eval"]
    assert shown["bs"] == len(shown["noise_levels"]) == len(shown["texts"]) == 1
    for name in ("imgs_noisy", "imgs_1step", "imgs_1orig", "imgs_final"):
        assert shown[name].shape == (1, 16, 16, 3)


def test_noise_schedule_oracles(folder: Path) -> None:
    schedule = guidance(SDSGuidance, folder).schedule
    assert schedule.alphas_cumprod[500].item() == pytest.approx(0.2763, abs=5e-5)
    assert schedule.alphas_cumprod[980].item() == pytest.approx(0.005844, abs=5e-7)


def test_ddim_recovers_latents_from_the_true_noise() -> None:
    schedule = NoiseSchedule(schedule_by_hand())
    latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([20, 400, 999])
    noisy = schedule.add_noise(latents, noise, t)
    torch.testing.assert_close(schedule.clean(noisy, noise, t), latents, rtol=1e-3, atol=1e-3)
    denoised = schedule.denoise(noisy, t, 7, lambda x, s: noise)
    torch.testing.assert_close(denoised, latents, rtol=1e-3, atol=1e-3)


def test_v_prediction_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "tiny")
    file = other / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(InputError, match="found v_prediction, expected epsilon"):
        guidance(SDSGuidance, other)


@pytest.mark.parametrize(
    "config",
    [
        {"weighting_strategy": "sigma"},
        {"camera_condition_type": "intrinsics"},
        {"min_step_percent": 0.9, "max_step_percent": 0.5},
        {"lora_shares_noise": True, "guidance_scale_lora": 2.0},
        {"lora_shares_noise": True, "lora_n_timestamp_samples": 2},
    ],
)
def test_settings_without_meaning(folder: Path, config: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        guidance(VSDGuidance, folder, **config)


def test_a_batch_without_cameras_is_refused(folder: Path, prompts: list[Any]) -> None:
    batch = views()
    del batch["c2w"]
    with pytest.raises(InputError, match="c2w"):
        guidance(VSDGuidance, folder)(render(), prompts[0], **batch)


def test_both_guidances_are_found_by_name_on_the_active_host() -> None:
    from threestudio_eeg import plugin
    from threestudio_eeg.builtin.registry import find

    assert find("eeg-vsd-guidance") is VSDGuidance
    assert find("eeg-sds-guidance") is SDSGuidance
    assert all(find(name) for name in plugin.register_all())


@pytest.mark.gpu
def test_a_step_on_cuda_waits_for_nothing(folder: Path, tmp_path: Path) -> None:
    file = tiny_conditioning(tmp_path / "eeg.safetensors", folder)
    pipeline = {"pretrained_model_name_or_path": str(folder)}
    with device_scope("cuda"):
        prompt = EEGPromptProcessor({**pipeline, "conditioning": str(file)})()
        g = VSDGuidance(pipeline)
    batch = {name: value.cuda() for name, value in views().items()}
    rgb = render().detach().cuda().requires_grad_(True)

    def step() -> None:
        g.update_step(0, 0)
        out = g(rgb, prompt, **batch)
        (out["loss_vsd"] + out["loss_lora"]).backward()

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert rgb.grad.isfinite().all()
    assert g.pipeline.dtype == torch.float16
    assert {p.dtype for p in g.parameters()} == {torch.float32}
