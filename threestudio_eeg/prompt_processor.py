"""An EEG trial as the prompt: a conditioning file, answered as threestudio answers a text."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eeg_encoder.conditioning import (
    Conditioning,
    load_conditioning,
    pipeline_fingerprint,
    refined_from,
)
from eeg_encoder.errors import InputError

from .host import DirectionConfig, PromptProcessor, PromptProcessorOutput, register
from .pipeline import Pipeline, load_pipeline, pipeline_folder
from .view_tokens import append_view_tokens

VIEW_MODES = ("auto", "tokens", "text", "none")
VIEWS = ("side", "front", "back", "overhead")


@dataclass
class EEGPromptOutput(PromptProcessorOutput):
    """Context tokens of one trial; the EEG is in the conditional half only.

    ``camera_tokens`` is the pipeline's view encoder, or None; ``camera_dependent`` says whether
    the conditional half gets the tokens of its cameras or, as the unconditional half always does,
    the null view tokens. ``provenance`` is what a trial folder should record.
    """

    camera_tokens: Any = None
    camera_dependent: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def get_text_embeddings(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        view_dependent_prompting: bool = True,
    ) -> Tensor:
        """Return (2B, L [+ K], D), the conditional half first; angles (B,) in degrees."""
        views = (elevation, azimuth, camera_distances)
        embeddings = super().get_text_embeddings(*views, view_dependent_prompting)
        seen = view_dependent_prompting and self.camera_dependent
        return append_view_tokens(embeddings, self.camera_tokens, *views, seen)


@register("eeg-prompt-processor")
class EEGPromptProcessor(PromptProcessor):
    """Conditions the guidance on one trial of a conditioning file.

    View dependence, by ``view_dependent``:

    ``tokens``
        The pipeline's view encoder: tokens of the camera itself behind the trial's tokens.
    ``text``
        For pipelines without one: the trial's tokens plus ``view_text_scale`` times
        ``E("an object, back view") - E("an object")`` (and side, front, overhead), E being the
        pipeline's text encoder and "an object" ``view_text_subject``.
    ``none``
        Every view gets the same tokens.
    ``auto``
        The first of these that the pipeline has the parts for.

    Raises
    ------
    InputError
        For a conditioning file that is missing, foreign, of another version, made for another
        base model (unless ``allow_other_base_model``) or of another width; for an unknown trial;
        and for settings that have no meaning here (a negative prompt, debiasing).
    """

    @dataclass
    class Config(PromptProcessor.Config):
        """Further fields: ``trial`` is a row of the file or a trial's id; ``prompt`` only names
        the run, for ``tag``."""

        conditioning: str = ""
        trial: Any = 0
        pretrained_model_name_or_path: str = "phantom"
        prompt: str = ""
        view_dependent: str = "auto"
        view_text_subject: str = "an object"
        view_text_scale: float = 1.0
        allow_other_base_model: bool = False

    cfg: Any

    def configure(self) -> None:
        self._check_config()
        file = Path(self.cfg.conditioning)
        folder = pipeline_folder(self.cfg.pretrained_model_name_or_path)
        conditioning = load_conditioning(file)
        check_base_model(file, conditioning, folder, self.cfg.allow_other_base_model)
        row = _row(file, conditioning, self.cfg.trial)
        pipeline = load_pipeline(
            folder, device=self.device, parts=("view_encoder", "text_encoder", "tokenizer")
        )
        self.view_mode = _view_mode(self.cfg.view_dependent, pipeline)
        if self.cfg.use_perp_neg and self.view_mode != "text":
            raise InputError(folder, "use_perp_neg", True, "false, or view_dependent=text")
        self.camera_tokens = pipeline.view_encoder
        self.directions = self._directions()
        self.direction2idx = {d.name: i for i, d in enumerate(self.directions)}
        self._set_embeddings(file, conditioning, row, pipeline)
        self.prompt = self.cfg.prompt or conditioning.trials[row].id
        self.prompts_vd = [direction.prompt(self.prompt) for direction in self.directions]
        self.provenance = provenance(file, conditioning, row) | {
            "pipeline": pipeline.fingerprint,
            "view_dependent": self.view_mode,
        }

    def __call__(self) -> EEGPromptOutput:
        cfg = self.cfg
        return EEGPromptOutput(
            text_embeddings=self.text_embeddings,
            uncond_text_embeddings=self.uncond_text_embeddings,
            text_embeddings_vd=self.text_embeddings_vd,
            uncond_text_embeddings_vd=self.uncond_text_embeddings_vd,
            directions=self.directions,
            direction2idx=self.direction2idx,
            use_perp_neg=cfg.use_perp_neg,
            perp_neg_f_sb=cfg.perp_neg_f_sb,
            perp_neg_f_fsb=cfg.perp_neg_f_fsb,
            perp_neg_f_fs=cfg.perp_neg_f_fs,
            perp_neg_f_sf=cfg.perp_neg_f_sf,
            prompt=self.prompt,
            prompts_vd=self.prompts_vd,
            camera_tokens=self.camera_tokens,
            camera_dependent=self.view_mode == "tokens",
            provenance=self.provenance,
        )

    def _check_config(self) -> None:
        cfg, where = self.cfg, "eeg-prompt-processor"
        if not cfg.conditioning:
            raise InputError(where, "conditioning", "nothing", "the path of a conditioning file")
        if cfg.view_dependent not in VIEW_MODES:
            raise InputError(where, "view_dependent", cfg.view_dependent, ", ".join(VIEW_MODES))
        if cfg.negative_prompt:
            expected = "no text: the unconditional branch is the file's null tokens"
            raise InputError(where, "negative_prompt", repr(cfg.negative_prompt), expected)
        if cfg.use_prompt_debiasing:
            raise InputError(where, "use_prompt_debiasing", True, "false: there are no words")

    def _set_embeddings(
        self, file: Path, conditioning: Conditioning, row: int, pipeline: Pipeline
    ) -> None:
        tokens = conditioning.tokens[row].to(self.device)
        null = conditioning.null_tokens.to(self.device)
        self.text_embeddings, self.uncond_text_embeddings = tokens[None], null[None]
        offsets = self._text_offsets(file, tokens, pipeline) if self.view_mode == "text" else 0
        self.text_embeddings_vd = tokens.expand(len(VIEWS), -1, -1) + offsets
        self.uncond_text_embeddings_vd = null.expand(len(VIEWS), -1, -1)

    def _text_offsets(self, file: Path, tokens: Tensor, pipeline: Pipeline) -> Tensor:
        subject = self.cfg.view_text_subject
        worded = [direction.prompt(subject) for direction in self.directions]
        plain, *views = pipeline.encode_text([subject, *worded])
        if plain.shape != tokens.shape:
            expected = f"{plain.shape[0]}, the text encoder's (or view_dependent=none)"
            raise InputError(file, "number of tokens", tokens.shape[0], expected)
        return self.cfg.view_text_scale * (torch.stack(views) - plain)

    def _directions(self) -> list[DirectionConfig]:
        cfg = self.cfg
        conditions = {
            "side": lambda ele, azi, dis: torch.ones_like(ele, dtype=torch.bool),
            "front": lambda ele, azi, dis: _turn(azi) < cfg.front_threshold,
            "back": lambda ele, azi, dis: _turn(azi) > 180 - cfg.back_threshold,
            "overhead": lambda ele, azi, dis: ele > cfg.overhead_threshold,
        }
        return [
            DirectionConfig(name, _wording(name), lambda negative: negative, conditions[name])
            for name in VIEWS
        ]


def check_base_model(
    file: str | Path, conditioning: Conditioning, folder: Path, allow_other: bool = False
) -> None:
    """Check that a conditioning file was made for a pipeline folder.

    Raises
    ------
    InputError
        When the file names another base model (a refined pipeline fits what was made for the one
        it was refined from), or its tokens have another width than the U-Net's cross-attention.
    """
    fingerprint = pipeline_fingerprint(folder)
    fits = (fingerprint, refined_from(folder))
    if conditioning.base_model not in fits and not allow_other:
        expected = f"{fingerprint} (or allow_other_base_model=true)"
        raise InputError(file, "base_model", conditioning.base_model, expected)
    config = json.loads((folder / "unet" / "config.json").read_text())
    width, found = config["cross_attention_dim"], conditioning.tokens.shape[-1]
    if found != width:
        raise InputError(file, "width of tokens", found, f"{width}, the U-Net's ({folder.name})")


def provenance(file: Path, conditioning: Conditioning, row: int) -> dict[str, Any]:
    """Return what identifies a trial's conditioning, for the record of a run."""
    return {
        "conditioning": file.name,
        "conditioning_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "trial": asdict(conditioning.trials[row]),
        "encoder_sha256": conditioning.encoder,
        "base_model": conditioning.base_model,
        "preprocessing": conditioning.preprocessing,
        "protocol": conditioning.protocol,
    }


def _row(file: Path, conditioning: Conditioning, trial: int | str) -> int:
    try:
        return conditioning.index_of(trial)
    except InputError as error:
        raise InputError(file, error.field, error.found, error.expected) from None


def _view_mode(wanted: str, pipeline: Pipeline) -> str:
    has_text = pipeline.text_encoder is not None and pipeline.tokenizer is not None
    if wanted == "auto":
        return "tokens" if pipeline.view_encoder is not None else "text" if has_text else "none"
    if wanted == "tokens" and pipeline.view_encoder is None:
        raise InputError(pipeline.path, "view_encoder", "nothing", "one, for view_dependent=tokens")
    if wanted == "text" and not has_text:
        expected = "text_encoder and tokenizer, for view_dependent=text"
        raise InputError(pipeline.path, "text_encoder", "nothing", expected)
    return wanted


def _wording(name: str) -> Any:
    return lambda prompt: f"{prompt}, {name} view"


def _turn(azimuth: Tensor) -> Tensor:
    return ((azimuth + 180) % 360 - 180).abs()
