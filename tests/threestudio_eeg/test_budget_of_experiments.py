from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eeg_encoder.errors import InputError
from threestudio_eeg.acceleration.budget import settings_for, settings_for_experiment
from threestudio_eeg.builtin.config import load_config
from threestudio_eeg.experiments import experiment_config

SD = tuple(
    f"system.{part}.pretrained_model_name_or_path=somebody/stable-diffusion"
    for part in ("guidance", "prompt_processor")
)


def experiment(name: str, *words: str) -> Any:
    conditioning = "system.prompt_processor.conditioning=x.safetensors"
    return load_config(experiment_config(Path(name)), cli_args=[conditioning, *words])


def test_less_memory_never_gives_more_expected() -> None:
    config = experiment("eeg-prolificdreamer.yaml", *SD)
    needed = [settings_for_experiment(config, gb).needed_gb for gb in (80, 24, 16, 10, 8)]
    assert needed == sorted(needed, reverse=True)
    assert all(n <= gb for n, gb in zip(needed, (80, 24, 16, 10, 8), strict=True))


def test_small_cards_get_checkpoints_and_the_reason() -> None:
    chosen = settings_for_experiment(experiment("eeg-prolificdreamer.yaml", *SD), 8)
    assert chosen.overrides["system.guidance.checkpoint_vae"] is True
    assert "VAE" in chosen.describe()
    assert "system.guidance.checkpoint_vae=true" in chosen.arguments()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("more", [(), ("schedule/progressive.yaml",)])
def test_what_common_cards_get(more: tuple[str, ...], fused: bool) -> None:
    """A step at 512 x 512 with all activations kept took 6.8 GB on an H200, libraries left out."""
    conditioning = "system.prompt_processor.conditioning=x.safetensors"
    names = ("eeg-prolificdreamer.yaml", *more, *["acceleration/fused-field.yaml"] * fused)
    files = [experiment_config(Path(name)) for name in names]
    config = load_config(*files, cli_args=[conditioning, *SD])
    small, usual, large = (settings_for_experiment(config, gb) for gb in (8, 12, 24))
    assert small.overrides["system.renderer.train_chunk_size"] > 0
    assert small.overrides["system.guidance.checkpoint_unet"] is True
    for chosen in (small, usual, large):
        assert chosen.overrides["system.guidance.acceleration"] == "auto"
        assert not any(key.startswith("data.") for key in chosen.overrides)
    for chosen in (usual, large):
        assert chosen.overrides["system.guidance.checkpoint_vae"] is False
    assert "system.renderer.train_chunk_size" not in large.overrides
    assert usual.overrides.get("system.renderer.train_chunk_size") == (1 << 20 if fused else None)
    assert large.needed_gb > 8.94 if fused else large.needed_gb < 12


def test_what_a_fused_field_keeps_is_counted() -> None:
    """An object took 8.94 GB at its peak, 5.47 of them without look-ups."""
    kept, again = (settings_for(gb, look_ups=True) for gb in (24, 12))
    assert "look-ups" in kept.describe()
    assert kept.needed_gb - again.needed_gb >= 8.94 - 5.47 - 0.15
    assert again.overrides["system.renderer.train_chunk_size"] == 1 << 20
    assert settings_for(24).needed_gb == again.needed_gb


def test_the_phantom_fits_a_small_card_as_it_is() -> None:
    chosen = settings_for_experiment(experiment("phantom/eeg.yaml"), 4)
    assert chosen.overrides["system.guidance.checkpoint_vae"] is False
    assert not any(key.startswith("data.") for key in chosen.overrides)


def test_objects_together_need_more() -> None:
    config = experiment("phantom/eeg.yaml")
    one, eight = (settings_for_experiment(config, 40, together=k).needed_gb for k in (1, 8))
    assert eight > one


def test_a_resolution_that_does_not_fit_is_lowered_on_representations_without_chunks() -> None:
    config = experiment(
        "eeg-prolificdreamer.yaml", *SD, "system.renderer_type=neus-volume-renderer"
    )
    chosen = settings_for_experiment(config, 8)
    assert not any(key.startswith("system.renderer.") for key in chosen.overrides)
    assert max(chosen.overrides["data.width"]) < 512
    assert any("lowered" in reason for reason in chosen.reasons)
    assert not any("chunks" in reason for reason in chosen.reasons)


def test_nothing_fits_a_gigabyte() -> None:
    with pytest.raises(InputError, match="at least"):
        settings_for_experiment(experiment("eeg-prolificdreamer.yaml", *SD), 1)
