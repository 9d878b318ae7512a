"""What an EEG prompt answers: the trial in the conditional half, in front."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from eeg_encoder.conditioning import load_conditioning

from .world import World, cameras

L, D, K = 8, 32, 2


def angles(n: int = 4) -> tuple[torch.Tensor, ...]:
    """Front, left, back, and one from above."""
    elevation = torch.tensor([0.0, 0.0, 0.0, 80.0])[:n]
    return elevation, torch.tensor([0.0, 90.0, 180.0, 0.0])[:n], torch.full((n,), 2.0)


@pytest.mark.parametrize("seeing", [True, False])
@pytest.mark.parametrize("dependent", [True, False])
def test_conditional_half_first(world: World, seeing: bool, dependent: bool) -> None:
    processor = world.prompt(seeing=seeing, view_text_subject="mug")
    file = world.inputs.seeing_eeg if seeing else world.inputs.plain_eeg
    conditioning = load_conditioning(file)
    embeddings = processor().get_text_embeddings(*angles(), dependent)
    assert embeddings.shape == (8, L + K * seeing, D)
    conditional, unconditional = embeddings.chunk(2)
    null = conditioning.null_tokens.expand(4, -1, -1)
    torch.testing.assert_close(unconditional[:, :L], null)
    if seeing or not dependent:
        tokens = conditioning.tokens[1].expand(4, -1, -1)
        torch.testing.assert_close(conditional[:, :L], tokens)
    if dependent:
        views = conditional.flatten(1)
        assert len({tuple(view.tolist()) for view in views}) == 4
    else:
        assert (conditional == conditional[:1]).all()


def test_text_offsets_are_differences_of_captions(world: World) -> None:
    """A pipeline without a view encoder: the trial's tokens, and the view's words on top."""
    from threestudio_eeg.pipeline import load_pipeline

    words = ["mug", "mug, side view", "mug, front view", "mug, back view", "mug, overhead view"]
    plain, *views = load_pipeline(world.inputs.plain, device="cpu").encode_text(words)
    prompt = world.prompt(seeing=False, view_text_subject="mug", view_text_scale=0.5)()
    tokens = load_conditioning(world.inputs.plain_eeg).tokens[1]
    found = prompt.get_text_embeddings(*angles(), True).chunk(2)[0]
    for row, view in zip(found, (1, 0, 2, 3), strict=True):
        torch.testing.assert_close(row, tokens + 0.5 * (views[view] - plain))


def test_it_is_a_prompt_of_the_host(world: World) -> None:
    processor = world.prompt()
    prompt = processor()
    assert isinstance(processor, world.host.PromptProcessor)
    assert isinstance(prompt, world.host.PromptProcessorOutput)
    assert [d.name for d in prompt.directions] == ["side", "front", "back", "overhead"]
    assert prompt.direction2idx == {"side": 0, "front": 1, "back": 2, "overhead": 3}
    assert prompt.use_perp_neg is False
    processor.do_update_step(0, 3)
    assert processor.provenance["trial"]["id"] == "trial-1"


def test_the_host_s_own_text_prompt_feeds_our_guidance(world: World, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "load").mkdir()
    (tmp_path / "load" / "prompt_library.json").write_text("{}")
    folder = str(world.inputs.plain)
    config = {"prompt": "a red mug", "pretrained_model_name_or_path": folder, "spawn": False}
    text = world.host.find("stable-diffusion-prompt-processor")(OmegaConf.create(config))()
    guidance = world.guidance("sds", pretrained_model_name_or_path=folder)
    loss = guidance(torch.rand(2, 16, 16, 3, requires_grad=True), text, **cameras())["loss_sds"]
    assert loss.isfinite()
