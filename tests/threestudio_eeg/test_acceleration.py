from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eeg_encoder.errors import InputError
from tests.tiny import tiny_conditioning, tiny_pipeline
from threestudio_eeg.acceleration import (
    TrialPrompts,
    budget,
    resolve_acceleration,
    settings_for,
)
from threestudio_eeg.acceleration.gradients import flat_gradient, with_gradient
from threestudio_eeg.acceleration.graphs import N_RECORDINGS, Recordings
from threestudio_eeg.acceleration.tensors import signature, tensors_of, with_tensors
from threestudio_eeg.adapters import adapter_state
from threestudio_eeg.builtin.base import device_scope
from threestudio_eeg.guidance import SDSGuidance, VSDGuidance
from threestudio_eeg.prompt_processor import EEGPromptProcessor

B = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="module")
def eeg(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_conditioning(tmp_path_factory.mktemp("eeg") / "eeg.safetensors", folder)


def prompt(folder: Path, eeg: Path, trial: int = 0, device: str = "cpu") -> Any:
    config = {"conditioning": str(eeg), "pretrained_model_name_or_path": str(folder)}
    with device_scope(device):
        return EEGPromptProcessor({**config, "trial": trial})()


def guidance(kind: type, folder: Path, device: str = "cpu", **config: Any) -> Any:
    torch.manual_seed(3)
    with device_scope(device):
        g = kind({"pretrained_model_name_or_path": str(folder), **config})
    if list(g.parameters()):
        generator = torch.Generator().manual_seed(4)
        for parameter in g.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(0.05 * noise.to(device))
    return g


def views(n: int = B, device: str = "cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    batch = {
        "elevation": torch.full((n,), 10.0),
        "azimuth": torch.linspace(-90, 90, n),
        "camera_distances": torch.full((n,), 2.0),
        "c2w": torch.randn(n, 4, 4, generator=generator),
        "mvp_mtx": torch.randn(n, 4, 4, generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()}


def render(n: int = B, device: str = "cpu", seed: int = 6) -> Tensor:
    rgb = torch.rand(n, 16, 16, 3, generator=torch.Generator().manual_seed(seed))
    return rgb.to(device).requires_grad_(True)


def results(g: Any, prompt: Any, n: int = B, device: str = "cpu", **options: Any) -> dict[str, Any]:
    """Losses and all gradients of one seeded step."""
    rgb = render(n, device)
    g.zero_grad()
    torch.manual_seed(11)
    out = g(rgb, prompt, **views(n, device), **options)
    sum((i + 1) * v for i, (k, v) in enumerate(sorted(out.items())) if "loss" in k).backward()
    grads = {name: p.grad for name, p in g.named_parameters()}
    losses = {k: v.detach() for k, v in out.items() if "loss" in k or k == "grad_norm"}
    return {**losses, "rgb": rgb.grad, **grads}


def assert_same(one: dict[str, Any], other: dict[str, Any], **tolerance: float) -> None:
    assert set(one) == set(other)
    for name in one:
        say = functools.partial("{}: {}".format, name)
        torch.testing.assert_close(one[name], other[name], msg=say, **tolerance)


CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "vsd": (VSDGuidance, {}),
    "sds": (SDSGuidance, {}),
    "scale 1": (VSDGuidance, {"guidance_scale": 1.0}),
    "clipped": (VSDGuidance, {"grad_clip": 0.1}),
    "shared noise": (VSDGuidance, {"lora_shares_noise": True}),
    "guided LoRA": (VSDGuidance, {"guidance_scale_lora": 2.0}),
    "two timesteps": (VSDGuidance, {"lora_n_timestamp_samples": 2}),
    "image loss": (VSDGuidance, {"use_img_loss": True, "sample_posterior": False}),
    "checkpoints": (VSDGuidance, {"checkpoint_unet": True, "checkpoint_vae": True}),
    "slicing": (VSDGuidance, {"vae_slicing": True}),
    "two trials": (VSDGuidance, {"n_trials": 2, "shared_t": True}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_recorded_step_gives_the_losses_and_gradients_of_the_eager_one(
    folder: Path, eeg: Path, case: str
) -> None:
    kind, config = CASES[case]
    said = prompt(folder, eeg)
    eager = results(guidance(kind, folder, acceleration="none", **config), said)
    recorded = guidance(kind, folder, acceleration="graphs", **config)
    for _ in range(2):
        assert_same(results(recorded, said), eager, rtol=1e-4, atol=1e-6)
    assert len(recorded._recorded._recordings) == 1
    assert eager["rgb"].abs().sum() > 0


@pytest.mark.parametrize(
    "config",
    [
        {"checkpoint_unet": True, "lora_shares_noise": True},
        {"checkpoint_unet": True},
        {"checkpoint_vae": True},
        {"vae_slicing": True},
        {"channels_last": True},
        {"one_pass_scores": True},
        {"one_pass_scores": True, "guidance_scale_lora": 2.0},
        {"one_pass_scores": True, "guidance_scale": 1.0},
    ],
)
def test_options_of_memory_and_speed_change_no_result(
    folder: Path, eeg: Path, config: dict[str, Any]
) -> None:
    said = prompt(folder, eeg)
    meaning = {k: v for k, v in config.items() if "scale" in k or "shares" in k}
    plain = results(guidance(VSDGuidance, folder, **meaning), said)
    assert_same(results(guidance(VSDGuidance, folder, **config), said), plain, rtol=1e-3, atol=1e-5)


def test_one_pass_means_one_call_of_the_network(folder: Path, eeg: Path) -> None:
    for one_pass, batches in ((False, [2 * B, B, B]), (True, [3 * B, B])):
        g = guidance(VSDGuidance, folder, one_pass_scores=one_pass)
        seen: list[int] = []
        g.pipeline.unet.register_forward_pre_hook(lambda m, x, seen=seen: seen.append(len(x[0])))
        results(g, prompt(folder, eeg))
        assert seen == batches


def test_schedules_do_not_record_again_and_shapes_do(folder: Path, eeg: Path) -> None:
    said = prompt(folder, eeg)
    config = {
        "guidance_scale": [0, 9.0, 2.0, 8],
        "grad_clip": [0, 2.0, 0.1, 8],
        "max_step_percent": [0, 0.98, 0.3, 8],
    }
    eager, recorded = (
        guidance(VSDGuidance, folder, acceleration=mode, **config) for mode in ("none", "graphs")
    )
    for step in (0, 4, 8):
        for g in (eager, recorded):
            g.update_step(0, step)
        assert_same(results(recorded, said), results(eager, said), rtol=1e-4, atol=1e-6)
    assert len(recorded._recorded._recordings) == 1
    assert_same(results(recorded, said, 3), results(eager, said, 3), rtol=1e-4, atol=1e-6)
    assert len(recorded._recorded._recordings) == 2


def test_training_the_lora_by_either_path_gives_the_same_weights(folder: Path, eeg: Path) -> None:
    said, weights = prompt(folder, eeg), []
    for mode in ("none", "graphs"):
        g = guidance(VSDGuidance, folder, acceleration=mode)
        optimizer = torch.optim.SGD(g.parameters(), lr=1e-2)
        torch.manual_seed(12)
        for _ in range(4):
            optimizer.zero_grad()
            g(render(), said, **views())["loss_lora"].backward()
            optimizer.step()
        weights.append(dict(g.named_parameters()))
    assert_same(*weights, rtol=1e-4, atol=1e-6)


def test_an_own_optimizer_trains_from_stored_gradients(folder: Path, eeg: Path) -> None:
    said, states = prompt(folder, eeg), []
    own = {"name": "SGD", "args": {"lr": 0.1}}
    for mode in ("none", "graphs"):
        g = guidance(VSDGuidance, folder, acceleration=mode, lora_optimizer=own)
        torch.manual_seed(13)
        with pytest.warns(UserWarning, match="new LoRA"):
            out = g(render(), said, **views())
        assert "loss_lora" not in out
        assert not out["lora_loss"].requires_grad
        states.append(g.own_optimizer.state_dict()["module"])
    assert_same(*states, rtol=1e-4, atol=1e-6)


def test_two_steps_before_their_backward_passes_keep_their_own_gradients(
    folder: Path, eeg: Path
) -> None:
    said = prompt(folder, eeg)
    grads = []
    for mode in ("none", "graphs"):
        g = guidance(VSDGuidance, folder, acceleration=mode)
        torch.manual_seed(14)
        renders = [render(seed=s) for s in (1, 2)]
        outs = [g(rgb, said, **views()) for rgb in renders]
        sum(out["loss_vsd"] + out["loss_lora"] for out in outs).backward()
        grads.append({f"{i}": rgb.grad for i, rgb in enumerate(renders)})
        grads[-1].update({name: p.grad for name, p in g.named_parameters()})
    assert not torch.allclose(grads[0]["0"], grads[0]["1"])
    assert_same(*grads, rtol=1e-4, atol=1e-6)


def test_without_gradients_and_for_pictures_of_the_step_nothing_is_recorded(
    folder: Path, eeg: Path
) -> None:
    g = guidance(VSDGuidance, folder, acceleration="graphs", sample_steps=2)
    with torch.no_grad():
        g(render(), prompt(folder, eeg), **views())
    shown = g(render(), prompt(folder, eeg), **views(), guidance_eval=True)
    assert "imgs_final" in shown["eval"]
    assert len(g._recorded._recordings) == 0


# Several trials in one batch


def test_two_trials_side_by_side_are_two_guidances(folder: Path, eeg: Path) -> None:
    """With the same draws: the losses are sums, the gradients each trial's own."""
    said = [prompt(folder, eeg, trial) for trial in (0, 1)]
    both = guidance(VSDGuidance, folder, n_trials=2, sample_posterior=False)
    draws, batch, rgb = both.draw(4), views(4), render(4)
    both.draw = lambda n, as_latents: draws
    out = both(rgb, TrialPrompts(said), **batch)
    (out["loss_vsd"] + out["loss_lora"]).backward()
    losses: dict[str, Tensor] = {"loss_vsd": torch.zeros(()), "loss_lora": torch.zeros(())}
    for trial in (0, 1):
        own = guidance(VSDGuidance, folder, sample_posterior=False)
        own.load_state_dict(adapter_state(both.state_dict(), trial))
        rows = slice(2 * trial, 2 * trial + 2)
        parts = {path: value[rows] for path, value in tensors_of(draws).items()}
        own.draw = lambda n, as_latents, parts=parts: with_tensors(draws, parts)
        picture = rgb.detach()[rows].requires_grad_()
        alone = own(picture, said[trial], **{k: v[rows] for k, v in batch.items()})
        (alone["loss_vsd"] + alone["loss_lora"]).backward()
        torch.testing.assert_close(rgb.grad[rows], picture.grad, rtol=1e-3, atol=1e-6)
        for name, parameter in own.named_parameters():
            stacked = both.get_parameter(name).grad[trial]
            torch.testing.assert_close(stacked, parameter.grad, rtol=1e-3, atol=1e-6)
        losses = {name: value + alone[name].detach() for name, value in losses.items()}
    for name, value in losses.items():
        torch.testing.assert_close(out[name].detach(), value)


def test_views_that_cannot_be_shared_out_are_refused(folder: Path, eeg: Path) -> None:
    g = guidance(VSDGuidance, folder, n_trials=2)
    with pytest.raises(InputError, match="number of views: found 3, expected a multiple"):
        g(render(3), prompt(folder, eeg), **views(3))


def test_a_shared_timestep_is_shared_by_one_trials_views_only(folder: Path) -> None:
    g = guidance(SDSGuidance, folder, n_trials=3, shared_t=True)
    t = torch.stack([g.draw(6).t.view(3, 2) for _ in range(4)])
    assert (t[..., 0] == t[..., 1]).all()
    assert len(t[..., 0].unique()) > 4


def test_prompts_of_trials_are_their_own_contexts_conditional_half_first(
    folder: Path, eeg: Path
) -> None:
    said = [prompt(folder, eeg, trial) for trial in (0, 1)]
    angles = [views(4)[name] for name in ("elevation", "azimuth", "camera_distances")]
    both = TrialPrompts(said).get_text_embeddings(*angles)
    for trial, rows in enumerate((slice(0, 2), slice(2, 4))):
        own = said[trial].get_text_embeddings(*(a[rows] for a in angles))
        assert torch.equal(both.chunk(2)[0][rows], own.chunk(2)[0])
        assert torch.equal(both.chunk(2)[1][rows], own.chunk(2)[1])


# The pieces


@dataclass
class Inner:
    x: Tensor
    label: str = "one"


@dataclass
class Outer:
    inner: Inner
    y: Tensor | None = None


def test_trees_of_tensors() -> None:
    tree = Outer(Inner(torch.ones(2)))
    assert list(tensors_of(tree)) == ["inner.x"]
    assert with_tensors(tree, {"inner.x": torch.zeros(2)}).inner.x.sum() == 0
    others = [
        Outer(Inner(torch.ones(3))),
        Outer(Inner(torch.ones(2), "two")),
        Outer(Inner(torch.ones(2).double())),
        Outer(Inner(torch.ones(2)), torch.ones(1)),
    ]
    assert signature(tree) == signature(Outer(Inner(torch.zeros(2))))
    assert len({signature(tree), *map(signature, others)}) == 5


def test_recordings_are_few_and_keep_the_latest() -> None:
    recordings = Recordings(lambda tree: {"out": tree.x * 2}, torch.device("cpu"))
    for n in range(1, N_RECORDINGS + 3):
        out = recordings.run(Inner(torch.full((n,), float(n))))["out"]
        assert out.tolist() == [2.0 * n] * n
    assert len(recordings) == N_RECORDINGS
    first, second = (recordings.run(Inner(torch.ones(9) * k))["out"] for k in (1, 2))
    assert first is second


@pytest.mark.parametrize("scale", [1.0, 4096.0])
def test_a_stored_gradient_is_the_gradient(scale: float) -> None:
    a, b = torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)

    def loss() -> Tensor:
        return (a.sum() * b).square().mean()

    flat = flat_gradient(loss(), [a, b], scale)
    (3 * loss()).backward()
    wanted = a.grad, b.grad
    a.grad = b.grad = None
    stored = with_gradient(loss().detach(), flat, [a, b])
    flat.zero_()
    (3 * stored).backward()
    torch.testing.assert_close((a.grad, b.grad), wanted)


def test_a_large_scale_saves_small_gradients_in_half_precision() -> None:
    w = torch.ones(8, requires_grad=True)

    def loss() -> Tensor:
        return (w.half() * 1e-4).float().sum() * 1e-5

    lost, kept = (flat_gradient(loss(), [w], scale) for scale in (1.0, 4096.0))
    assert lost.sum() == 0
    torch.testing.assert_close(kept, torch.full_like(kept, 1e-9), rtol=1e-2, atol=0)


def test_words_for_acceleration() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_acceleration("auto", cpu) == "none"
    assert resolve_acceleration("auto", cuda) == "graphs"
    for other in ("fast", "compile"):
        with pytest.raises(InputError, match=f"acceleration: found {other}"):
            resolve_acceleration(other, cpu)


# The budget


def test_less_memory_gives_leaner_settings_until_none_fit() -> None:
    roomy, tight, tightest = (settings_for(gb) for gb in (48, 10, 8))
    key = "system.guidance.checkpoint_vae"
    assert [s.overrides[key] for s in (roomy, tight, tightest)] == [False, True, True]
    assert tightest.overrides["system.renderer.train_chunk_size"] > 0
    assert all(s.needed_gb <= gb for s, gb in ((roomy, 48), (tight, 10), (tightest, 8)))
    assert "system.guidance.checkpoint_vae=true" in tight.arguments()
    assert "VAE checkpointed" in tight.describe()
    with pytest.raises(InputError, match="vram: gigabytes: found 2, expected at least"):
        settings_for(2)


def test_the_budget_is_a_little_above_what_a_step_took() -> None:
    """The figures of the whole step, of which the budget knows those of its render alone.

    What a CUDA graph keeps to itself is not in the measured peak.
    """
    file = Path(__file__).parents[2] / "docs" / "figures" / "train-step-h200.json"
    step = json.loads(file.read_text())["setups"]["default"]
    assert round(step["render bytes kept a sample"]) == budget.KEPT_BYTES
    assert round(step["render bytes at peak a sample"]) == budget.PEAK_BYTES
    assert round(step["samples a ray"] * 512**2, -5) == budget.AT_SAMPLES
    took = step["peak GB"] * 1e9 / 2**30
    chosen = settings_for(80, samples=int(step["samples"]))
    assert "system.renderer.train_chunk_size" not in chosen.overrides
    assert took < chosen.needed_gb - budget.RESERVE_GB < 1.25 * took


def test_renders_of_several_objects_that_keep_their_graphs_add_up() -> None:
    (_, one), (_, eight), (_, joined) = (
        budget._render_gb(samples, renders, False, True)
        for samples, renders in ((1_000_000, 1), (1_000_000, 8), (8_000_000, 1))
    )
    assert eight == pytest.approx(8 * one)
    assert eight > joined


@pytest.mark.parametrize("small", [False, True])
def test_more_samples_never_take_less(small: bool) -> None:
    """Up to the number from which a render keeps no graph, and above."""
    for side in (range(100_000, 4_200_000, 400_000), range(4_200_000, 40_000_000, 4_000_000)):
        found = [budget._render_gb(samples, 1, small, True) for samples in side]
        assert found == sorted(found)
        assert all(kept <= peak for kept, peak in found)


def test_settings_follow_batch_size_and_method() -> None:
    assert settings_for(12, batch=4).overrides["system.guidance.vae_slicing"]
    assert not settings_for(12, batch=1).overrides["system.guidance.vae_slicing"]
    assert settings_for(80, batch=4, lora=False).needed_gb < settings_for(80, batch=4).needed_gb
    small = settings_for(12, batch=8, image_size=64)
    assert small.overrides["system.guidance.checkpoint_vae"] is False


def test_the_guidance_takes_every_setting_of_the_budget(folder: Path) -> None:
    for gb in (48, 10, 9, 8):
        own = "system.guidance."
        overrides = settings_for(gb).overrides.items()
        config = {k.removeprefix(own): v for k, v in overrides if k.startswith(own)}
        taken = guidance(VSDGuidance, folder, **config).cfg
        assert {key: taken[key] for key in config} == config


# The benchmark


def test_the_benchmark_times_setups_and_checks_them(tmp_path: Path) -> None:
    names = ["eager", "graphs", "graphs, shared noise", "diffusers"]
    arguments = ["--size", "tiny", "--repeats", "1", "--device", "cpu", "--dtype", "float32"]
    file = tmp_path / "figures.json"
    script = Path(__file__).parents[2] / "benchmarks" / "vsd_step.py"
    spec = importlib.util.spec_from_file_location("vsd_step", script)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.main([*arguments, "--check", "--setups", *names, "--out", str(file)]) == 0
    figures = json.loads(file.read_text())
    setups = figures["batch 1"]["setups"]
    assert list(setups) == names
    assert all(setup["ms"] > 0 for setup in setups.values())
    assert figures["batch 1"]["floor"]["tflop"] > 0
    assert max(figures["check"]["graphs"].values()) < 1e-4


# On CUDA


@pytest.fixture
def single_precision() -> Iterator[None]:
    """No TensorFloat32: it has ten bits, and a recorded step may take other convolutions."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("case", list(CASES))
def test_a_cuda_graph_gives_the_results_of_the_eager_step(
    folder: Path, eeg: Path, case: str
) -> None:
    kind, config = CASES[case]
    config = {**config, "half_precision_weights": False}
    said = prompt(folder, eeg, device="cuda")
    plain = guidance(kind, folder, "cuda", acceleration="none", **config)
    eager = results(plain, said, device="cuda")
    graph = guidance(kind, folder, "cuda", acceleration="graphs", **config)
    for _ in range(3):
        assert_same(results(graph, said, device="cuda"), eager, rtol=2e-2, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.usefixtures("single_precision")
@pytest.mark.parametrize("acceleration", ["none", "graphs"])
def test_fused_norms_give_the_results_of_the_eager_step(
    folder: Path, eeg: Path, acceleration: str
) -> None:
    config = {"half_precision_weights": False, "acceleration": acceleration}
    said = prompt(folder, eeg, device="cuda")
    plain = guidance(VSDGuidance, folder, "cuda", **{**config, "acceleration": "none"})
    eager = results(plain, said, device="cuda")
    fused = guidance(VSDGuidance, folder, "cuda", fused_norms=True, **config)
    for _ in range(2):
        assert_same(results(fused, said, device="cuda"), eager, rtol=2e-2, atol=1e-4)


def test_fused_norms_are_refused_where_they_cannot_be(folder: Path) -> None:
    with pytest.raises(InputError, match="fused_norms"):
        guidance(VSDGuidance, folder, fused_norms=True)


@pytest.mark.gpu
@pytest.mark.parametrize("config", [{}, {"lora_shares_noise": True}, {"checkpoint_vae": True}])
def test_a_replayed_step_waits_for_nothing_and_records_once(
    folder: Path, eeg: Path, config: dict[str, Any]
) -> None:
    said = prompt(folder, eeg, device="cuda")
    g = guidance(VSDGuidance, folder, "cuda", guidance_scale=[0, 9.0, 2.0, 8], **config)
    batch, rgb = views(device="cuda"), render(device="cuda")

    def step(i: int) -> None:
        g.update_step(0, i)
        out = g(rgb, said, **batch)
        (out["loss_vsd"] + out["loss_lora"]).backward()

    step(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in (1, 2):
            step(i)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(g._recorded._recordings) == 1
    assert rgb.grad.isfinite().all()
