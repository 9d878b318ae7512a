"""Prompt processors: what the guidance is conditioned on, per camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eeg_encoder.errors import InputError
from threestudio_eeg.view_tokens import append_view_tokens

from .base import BaseObject
from .registry import register

Condition = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class DirectionConfig:
    """A named view: how it is worded, and which cameras see it.

    ``condition(elevation, azimuth, camera_distances)`` takes (B,) degrees, degrees and world
    units, and returns (B,) booleans.
    """

    name: str
    prompt: Callable[[str], str]
    negative_prompt: Callable[[str], str]
    condition: Condition


def shift_azimuth_deg(azimuth: Tensor) -> Tensor:
    """Bring azimuths in degrees into [-180, 180)."""
    return (azimuth + 180) % 360 - 180


def standard_directions(
    front_threshold: float, back_threshold: float, overhead_threshold: float, front: bool
) -> list[DirectionConfig]:
    """Return threestudio's four views in its order: side, front, back, overhead.

    A later view overrides an earlier one. Thresholds are in degrees; ``front`` puts the view
    before the prompt ("side view of a mug" instead of "a mug, side view").
    """

    def direction(name: str, condition: Condition) -> DirectionConfig:
        def wording(prompt: str) -> str:
            return f"{name} view of {prompt}" if front else f"{prompt}, {name} view"

        return DirectionConfig(name, wording, lambda negative: negative, condition)

    return [
        direction("side", lambda ele, azi, dis: torch.ones_like(ele, dtype=torch.bool)),
        direction("front", lambda ele, azi, dis: shift_azimuth_deg(azi).abs() < front_threshold),
        direction(
            "back", lambda ele, azi, dis: shift_azimuth_deg(azi).abs() > 180 - back_threshold
        ),
        direction("overhead", lambda ele, azi, dis: ele > overhead_threshold),
    ]


@dataclass
class PromptProcessorOutput:
    """Embeddings of a prompt and of its views, in the order of ``directions``.

    ``text_embeddings`` and ``uncond_text_embeddings`` are (1, L, D), the ``_vd`` ones (V, L, D).
    """

    text_embeddings: Tensor
    uncond_text_embeddings: Tensor
    text_embeddings_vd: Tensor
    uncond_text_embeddings_vd: Tensor
    directions: list[DirectionConfig]
    direction2idx: dict[str, int]
    use_perp_neg: bool
    perp_neg_f_sb: tuple[float, float, float]
    perp_neg_f_fsb: tuple[float, float, float]
    perp_neg_f_fs: tuple[float, float, float]
    perp_neg_f_sf: tuple[float, float, float]
    prompt: str
    prompts_vd: list[str]
    view_encoder: Any = None

    def view_index(self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor) -> Tensor:
        """Return (B,) indices into ``directions``: the last one whose condition holds."""
        index = torch.zeros_like(elevation, dtype=torch.long)
        for i, direction in enumerate(self.directions):
            index[direction.condition(elevation, azimuth, camera_distances)] = i
        return index

    def get_text_embeddings(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        view_dependent_prompting: bool = True,
    ) -> Tensor:
        """Return (2B, L [+ K], D), the conditional half first; angles (B,) in degrees."""
        if view_dependent_prompting:
            index = self.view_index(elevation, azimuth, camera_distances)
            cond, uncond = self.text_embeddings_vd[index], self.uncond_text_embeddings_vd[index]
        else:
            batch = elevation.shape[0]
            cond = self.text_embeddings.expand(batch, -1, -1)
            uncond = self.uncond_text_embeddings.expand(batch, -1, -1)
        return append_view_tokens(
            torch.cat([cond, uncond]),
            self.view_encoder,
            elevation,
            azimuth,
            camera_distances,
            view_dependent_prompting,
        )

    def get_text_embeddings_perp_neg(
        self,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        view_dependent_prompting: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings and weights for Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968).

        Returns
        -------
        embeddings
            (4B, L, D): B positive ones, interpolated between the views; B unconditional ones; 2B
            negative ones, the two of a camera side by side.
        weights
            (B, 2), of the negative ones.
        """
        if not view_dependent_prompting:
            raise ValueError("Perp-Neg needs view-dependent prompting")
        side, front, back, _ = self.text_embeddings_vd[:4]
        index = self.view_index(elevation, azimuth, camera_distances)
        uncond = self.uncond_text_embeddings_vd[index]
        turn = shift_azimuth_deg(azimuth).abs() / 90
        ahead, overhead = turn < 1, index == self.direction2idx["overhead"]

        frontness, sideness = _rank(1 - turn, 3), _rank(2 - turn, 3)
        positive = torch.where(
            _rank(ahead, 3),
            frontness * front + (1 - frontness) * side,
            sideness * side + (1 - sideness) * back,
        )
        positive = torch.where(_rank(overhead, 3), self.text_embeddings_vd[index], positive)

        pair_ahead, pair_behind = torch.stack([front, side]), torch.stack([side, front])
        negative = torch.where(_rank(ahead, 4), pair_ahead, pair_behind)
        negative = torch.where(_rank(overhead, 4), uncond[:, None], negative)

        weights_ahead = [_decay(self.perp_neg_f_fs, 1 - turn), _decay(self.perp_neg_f_sf, turn)]
        weights_behind = [_decay(f, 2 - turn) for f in (self.perp_neg_f_sb, self.perp_neg_f_fsb)]
        weights = -torch.where(
            _rank(ahead, 2), torch.stack(weights_ahead, 1), torch.stack(weights_behind, 1)
        )
        weights = weights.masked_fill(_rank(overhead, 2), 0.0)
        return torch.cat([positive, uncond, negative.flatten(0, 1)]), weights


def _rank(per_camera: Tensor, rank: int) -> Tensor:
    return per_camera.view(-1, *[1] * (rank - 1))


def _decay(coefficients: Any, r: Tensor) -> Tensor:
    a, b, c = coefficients
    return a * torch.exp(-b * r) + c


class PromptProcessor(BaseObject):
    """Prompt, negative prompt and views; a subclass says how a text becomes an embedding.

    Subclasses implement :meth:`encode`, or override :meth:`configure` and set ``text_embeddings``,
    ``uncond_text_embeddings``, ``text_embeddings_vd`` and ``uncond_text_embeddings_vd``.

    ``use_cache``, ``spawn`` and the fields of prompt debiasing are threestudio's. Here texts are
    encoded in this process at once, so the first two change nothing; debiasing is refused.
    ``view_wording=False`` leaves the view out of the text (for a pipeline with view tokens).
    """

    @dataclass
    class Config(BaseObject.Config):
        prompt: str = "a hamburger"
        prompt_front: str | None = None
        prompt_side: str | None = None
        prompt_back: str | None = None
        prompt_overhead: str | None = None
        negative_prompt: str = ""
        pretrained_model_name_or_path: str = "runwayml/stable-diffusion-v1-5"
        overhead_threshold: float = 60.0
        front_threshold: float = 45.0
        back_threshold: float = 45.0
        view_dependent_prompt_front: bool = False
        view_wording: bool = True
        use_cache: bool = True
        spawn: bool = True
        use_perp_neg: bool = False
        perp_neg_f_sb: tuple[float, float, float] = (1, 0.5, -0.606)
        perp_neg_f_fsb: tuple[float, float, float] = (1, 0.5, +0.967)
        perp_neg_f_fs: tuple[float, float, float] = (4, 0.5, -2.426)
        perp_neg_f_sf: tuple[float, float, float] = (4, 0.5, -2.426)
        use_prompt_debiasing: bool = False
        pretrained_model_name_or_path_prompt_debiasing: str = "bert-base-uncased"
        prompt_debiasing_mask_ids: list[int] | None = None

    text_embeddings: Tensor
    uncond_text_embeddings: Tensor
    text_embeddings_vd: Tensor
    uncond_text_embeddings_vd: Tensor
    view_encoder: Any = None

    def configure(self) -> None:
        if self.cfg.use_prompt_debiasing:
            raise InputError(
                "prompt processor", "use_prompt_debiasing", True, "False on the embedded host"
            )
        self.configure_directions()
        self.prepare_text_embeddings()

    def configure_directions(self) -> None:
        """Set ``directions``, ``direction2idx``, ``prompt``, ``prompts_vd`` and the negatives."""
        cfg = self.cfg
        self.directions = standard_directions(
            cfg.front_threshold,
            cfg.back_threshold,
            cfg.overhead_threshold,
            cfg.view_dependent_prompt_front,
        )
        self.direction2idx = {d.name: i for i, d in enumerate(self.directions)}
        self.prompt, self.negative_prompt = cfg.prompt, cfg.negative_prompt
        self.prompts_vd = [self._worded(direction) for direction in self.directions]
        self.negative_prompts_vd = [d.negative_prompt(cfg.negative_prompt) for d in self.directions]

    def _worded(self, direction: DirectionConfig) -> str:
        given = self.cfg[f"prompt_{direction.name}"]
        if given is not None:
            return given
        return direction.prompt(self.prompt) if self.cfg.view_wording else self.prompt

    def prepare_text_embeddings(self) -> None:
        """Encode the prompt, its negative and the views of both."""
        texts = [self.prompt, self.negative_prompt, *self.prompts_vd, *self.negative_prompts_vd]
        embeddings = self.encode(texts).detach().to(self.device)
        views = len(self.directions)
        self.text_embeddings, self.uncond_text_embeddings = embeddings[0:1], embeddings[1:2]
        self.text_embeddings_vd = embeddings[2 : 2 + views]
        self.uncond_text_embeddings_vd = embeddings[2 + views :]

    def encode(self, texts: list[str]) -> Tensor:
        """Return (len(texts), L, D)."""
        raise NotImplementedError

    def __call__(self) -> PromptProcessorOutput:
        cfg = self.cfg
        return PromptProcessorOutput(
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
            view_encoder=self.view_encoder,
        )


@register("stable-diffusion-prompt-processor")
class StableDiffusionPromptProcessor(PromptProcessor):
    """Texts through the text encoder of a pipeline folder; its view tokens where it has them."""

    def encode(self, texts: list[str]) -> Tensor:
        from threestudio_eeg.pipeline import load_pipeline

        folder = self.cfg.pretrained_model_name_or_path
        pipeline = load_pipeline(
            folder, device=self.device, parts=("tokenizer", "text_encoder", "view_encoder")
        )
        if pipeline.text_encoder is None or pipeline.tokenizer is None:
            raise InputError(folder, "text_encoder", "nothing", "a tokenizer and a text encoder")
        self.view_encoder = pipeline.view_encoder
        with torch.no_grad():
            return pipeline.encode_text(texts)
