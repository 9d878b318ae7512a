"""Score distillation from a frozen latent diffusion model: VSD and SDS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from .adapters import CameraLoRA
from .guidance_step import Distilled, Levels, Prompt, Step, combine_branches, given, n_branches
from .host import register
from .noise import Draws, Noised
from .own_optimizer import OwnOptimizer, UntrainedWatch
from .score_distillation import ScoreDistillation

__all__ = [
    "Distilled",
    "Levels",
    "Prompt",
    "SDSGuidance",
    "ScoreDistillation",
    "Step",
    "VSDGuidance",
]

CAMERA_CONDITIONS = {"extrinsics": "c2w", "mvp": "mvp_mtx"}


@register("eeg-sds-guidance")
class SDSGuidance(ScoreDistillation):
    """Score distillation sampling (Poole et al. 2022, arXiv 2209.14988): ``w (teacher - noise)``.

    VSD with the LoRA left out: the render's own score is replaced by the noise that was added.
    """

    @dataclass
    class Config(ScoreDistillation.Config):
        guidance_scale: Any = 10.0

    kind = "sds"

    def reference(self, noised: Noised, prompt: Prompt) -> Tensor:
        return noised.noise


@register("eeg-vsd-guidance")
class VSDGuidance(ScoreDistillation):
    """Variational score distillation (Wang et al. 2023, arXiv 2305.16213).

    The score of the renders is learned beside them: rank-``lora_rank`` adapters on the teacher's
    own U-Net, which predict the noise given the camera and the prompt without its view.

    Raises
    ------
    InputError
        For an unknown ``camera_condition_type``, or ``lora_shares_noise`` with settings that it
        excludes.
    """

    @dataclass
    class Config(ScoreDistillation.Config):
        """VSD's own fields; beyond threestudio's:

        ``lora_shares_noise``: train the LoRA on the very pass that gives its score (same timestep
        and noise, one pass less; no camera dropout). ``lora_view_dependent_prompting``: the LoRA
        sees the prompt's view too. ``lora_camera_drop``: share of cameras left out in training.
        ``one_pass_scores``: the teacher's and the LoRA's score from one batch of the U-Net; by
        default where the step is accelerated. With ``n_trials`` every object has its own LoRA.
        ``lora_optimizer``: an optimiser of the LoRA's own, ``{name: AdamW, args: {lr: 1e-4}}``,
        for systems that make their guidance too late for theirs (dreamfusion, magic3d, ...; see
        :mod:`.own_optimizer`). The LoRA is then trained here, its loss is returned as
        ``lora_loss``, to log, and its weights are left to ``eeg-system`` to save.
        """

        guidance_scale_lora: float = 1.0
        lora_rank: int = 4
        lora_cfg_training: bool = True
        lora_camera_drop: float = 0.1
        lora_n_timestamp_samples: int = 1
        lora_shares_noise: bool = False
        lora_view_dependent_prompting: bool = False
        lora_optimizer: Any = None
        camera_condition_type: str = "extrinsics"
        one_pass_scores: bool | None = None

    kind = "vsd"

    def configure_adapters(self) -> None:
        adapter = CameraLoRA(self.pipeline.unet, self.cfg.lora_rank, self.cfg.n_trials)
        self._frozen = (adapter,)
        self.own_optimizer: OwnOptimizer | None = None
        self._lora_weights = tuple(adapter.parameters())
        self._untrained = UntrainedWatch(adapter, "eeg-vsd-guidance")
        if self.cfg.lora_optimizer is None:
            self.lora_layers, self.camera_embedding = adapter.lora_layers, adapter.camera_embedding
        else:
            self.own_optimizer = OwnOptimizer(self.cfg.lora_optimizer, adapter, "eeg-vsd-guidance")
        self._shared_prediction: tuple[Tensor, Tensor] | None = None

    def prompt(self, prompt_utils: Any, views: tuple[Tensor, ...], batch: dict[str, Any]) -> Prompt:
        prompt = super().prompt(prompt_utils, views, batch)
        if not self.cfg.lora_view_dependent_prompting:
            plain = prompt_utils.get_text_embeddings(*views, False).chunk(2)[0]
            prompt.plain = plain.to(prompt.guided)
        prompt.camera = self._camera(batch)
        if self.cfg.n_trials > 1:
            n = len(prompt.camera)
            prompt.which = torch.arange(n, device=self.device) // (n // self.cfg.n_trials)
        return prompt

    def scores(
        self, noised: Noised, prompt: Prompt, scale: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        if self._scores_in_one_pass():
            return self._one_pass_scores(noised, prompt, scale)
        return super().scores(noised, prompt, scale)

    def _scores_in_one_pass(self) -> bool:
        if self.cfg.lora_shares_noise and torch.is_grad_enabled():
            return False
        wanted = self.cfg.one_pass_scores
        return self._recorded is not None if wanted is None else wanted

    @torch.no_grad()
    def _one_pass_scores(
        self, noised: Noised, prompt: Prompt, scale: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """What ``teacher`` and ``lora_score`` give, from one batch: the teacher's go first."""
        n, n_bare = n_branches(scale), n_branches(scale) * len(noised.t)
        noisy, t, context, camera, which = self._lora_batch(noised.latents, noised.t, prompt)
        out = self._lora(
            torch.cat([noised.latents] * n + [noisy]),
            torch.cat([noised.t.repeat(n), t]),
            torch.cat([prompt.guided[:n_bare], context]),
            camera,
            which,
            n_bare,
        )
        lora_scale = float(self.cfg.guidance_scale_lora)
        return combine_branches(out[:n_bare], scale), combine_branches(out[n_bare:], lora_scale)

    def reference(self, noised: Noised, prompt: Prompt) -> Tensor:
        if self.cfg.lora_shares_noise and torch.is_grad_enabled():
            camera = given(prompt.camera)
            prediction = self._lora(noised.latents, noised.t, prompt.plain, camera, prompt.which)
            self._shared_prediction = (prediction, noised.noise)
            return prediction.detach()
        with torch.no_grad():
            return self.lora_score(noised.latents, noised.t, prompt)

    def lora_score(self, noisy: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Noise (B, C, h, w) that the LoRA predicts, guided by the camera.

        ``z + s (k - z)``, k with the camera and z without; only k is computed when s is 1.
        """
        scale = float(self.cfg.guidance_scale_lora)
        return combine_branches(self._lora(*self._lora_batch(noisy, t, prompt)), scale)

    def _lora_batch(self, noisy: Tensor, t: Tensor, prompt: Prompt) -> tuple[Any, ...]:
        """Arguments of ``_lora`` with the branches of the score: k and, when it counts, z."""
        n, camera = n_branches(float(self.cfg.guidance_scale_lora)), given(prompt.camera)
        cameras = torch.cat([camera, torch.zeros_like(camera)][:n])
        which = None if prompt.which is None else prompt.which.repeat(n)
        return torch.cat([noisy] * n), t.repeat(n), prompt.plain.repeat(n, 1, 1), cameras, which

    def draw(self, n: int, as_latents: bool = False) -> Draws:
        draws = super().draw(n, as_latents)
        return draws if self.cfg.lora_shares_noise else self.draw_for_lora(draws)

    def draw_for_lora(self, draws: Draws) -> Draws:
        """Draw what the LoRA is trained on, beside what was drawn for the scores."""
        n = len(draws.noise) * self.cfg.lora_n_timestamp_samples
        draws.lora_t = torch.randint(0, len(self.schedule), (n,), device=self.device)
        draws.lora_noise = torch.randn((n, *draws.noise.shape[1:]), device=self.device)
        if self.cfg.lora_cfg_training:
            drawn = torch.rand(n, 1, device=self.device)
            draws.lora_camera_kept = drawn >= self.cfg.lora_camera_drop
        return draws

    def extra_losses(self, latents: Tensor, prompt: Prompt, draws: Draws) -> dict[str, Tensor]:
        shared, self._shared_prediction = self._shared_prediction, None
        if shared is not None:
            return {"loss_lora": F.mse_loss(*shared) * self.cfg.n_trials}
        return {"loss_lora": self.lora_loss(latents, prompt, draws)}

    def lora_loss(self, latents: Tensor, prompt: Prompt, draws: Draws) -> Tensor:
        """Mean squared error of the LoRA's predicted noise, over all timesteps and fresh noise.

        With ``lora_cfg_training`` a view loses its camera with probability ``lora_camera_drop``.
        With several objects, the sum of their errors.
        """
        k = self.cfg.lora_n_timestamp_samples
        t, noise = given(draws.lora_t), given(draws.lora_noise)
        camera = given(prompt.camera).repeat(k, 1)
        if draws.lora_camera_kept is not None:
            camera = camera * draws.lora_camera_kept
        which = None if prompt.which is None else prompt.which.repeat(k)
        noisy = self.schedule.add_noise(latents.repeat(k, 1, 1, 1), noise, t)
        predicted = self._lora(noisy, t, prompt.plain.repeat(k, 1, 1), camera, which)
        return F.mse_loss(predicted, noise) * self.cfg.n_trials

    @property
    def losses_are_apart(self) -> bool:
        return not (self.cfg.lora_shares_noise or self.cfg.checkpoint_unet)

    def trained_parameters(self) -> list[Tensor]:
        return [weight for weight in self._lora_weights if weight.requires_grad]

    def follow(self, losses: dict[str, Any]) -> dict[str, Any]:
        if self.own_optimizer is not None:
            losses["lora_loss"] = self.own_optimizer.step(losses.pop("loss_lora"))
        elif torch.is_grad_enabled():
            self._untrained.look(self._global_step)
        return losses

    @torch.no_grad()
    def sample_lora(
        self,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        seed: int = 0,
        **batch: Any,
    ) -> Tensor:
        """Pictures (B, H, W, 3) in [0, 1] that the LoRA makes for these cameras, by DDIM."""
        prompt = self.prompt(prompt_utils, (elevation, azimuth, camera_distances), batch)
        return self._sample(
            len(elevation), seed, lambda noisy, t: self.lora_score(noisy, t, prompt)
        )

    def _lora(
        self,
        noisy: Tensor,
        t: Tensor,
        context: Tensor,
        camera: Tensor,
        which: Tensor | None = None,
        n_bare: int = 0,
    ) -> Tensor:
        """Predicted noise; the first ``n_bare`` samples are the teacher's, and have no camera."""
        dtype = self.pipeline.dtype
        adapter: CameraLoRA = self._frozen[0]
        return adapter(noisy.to(dtype), t, context.to(dtype), camera, which, n_bare).float()

    def _unet_checkpointing(self) -> Callable[..., Any] | None:
        return self._frozen[0].checkpointing() if self.cfg.checkpoint_unet else None

    def _camera(self, batch: dict[str, Any]) -> Tensor:
        name = CAMERA_CONDITIONS[self.cfg.camera_condition_type]
        if batch.get(name) is None:
            raise InputError("eeg-vsd-guidance", name, "nothing", "camera matrices (B, 4, 4)")
        return batch[name].to(self.device, torch.float32).flatten(1)

    def _check_config(self) -> None:
        super()._check_config()
        cfg, where = self.cfg, "eeg-vsd-guidance"
        if cfg.camera_condition_type not in CAMERA_CONDITIONS:
            expected = " or ".join(CAMERA_CONDITIONS)
            raise InputError(where, "camera_condition_type", cfg.camera_condition_type, expected)
        if cfg.lora_shares_noise and cfg.guidance_scale_lora != 1.0:
            expected = "1 with lora_shares_noise"
            raise InputError(where, "guidance_scale_lora", cfg.guidance_scale_lora, expected)
        if cfg.lora_shares_noise and cfg.lora_n_timestamp_samples != 1:
            expected = "1 with lora_shares_noise"
            found = cfg.lora_n_timestamp_samples
            raise InputError(where, "lora_n_timestamp_samples", found, expected)
