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
from .host import BaseModule, C, register
from .noise import WEIGHTINGS, NoiseSchedule

CAMERA_CONDITIONS = {"extrinsics": "c2w", "mvp": "mvp_mtx"}


@dataclass
class Prompt:
    """Context tokens of a batch of B views.

    ``guided`` is (2B, L, D), conditional half first; ``plain`` (B, L, D) is the conditional
    context that the LoRA sees. ``camera`` (B, 16) is the LoRA's, or None.
    """

    guided: Tensor
    plain: Tensor
    camera: Tensor | None


@dataclass
class Noised:
    """Latents (B, C, h, w) with noise added at timesteps ``t`` (B,)."""

    latents: Tensor
    noise: Tensor
    t: Tensor


class NonFiniteWatch:
    """Say when a gradient was not finite, without waiting for the device.

    On a CUDA device the norm is copied while the next steps run and looked at once it has arrived,
    so the error comes a few steps late and names the step it belongs to.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._pending: tuple[int, Tensor, Any] | None = None

    def add(self, step: int, norm: Tensor) -> None:
        """Take in the gradient norm of a step."""
        if norm.device.type != "cuda":
            self._judge(step, norm)
        elif self._pending is None:
            value = torch.empty((), dtype=norm.dtype, pin_memory=True)
            value.copy_(norm, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = (step, value, event)

    def check(self) -> None:
        """Look at what has arrived.

        Raises
        ------
        InputError
            When a norm is nan or infinite.
        """
        if self._pending is not None and self._pending[2].query():
            step, value, _ = self._pending
            self._pending = None
            self._judge(step, value)

    def _judge(self, step: int, norm: Tensor) -> None:
        value = float(norm)
        if not abs(value) < float("inf"):
            expected = "a finite number (set grad_clip, or half_precision_weights=false)"
            raise InputError(self.where, f"gradient norm at step {step}", value, expected)


class ScoreDistillation(BaseModule):
    """What VSD and SDS share: pictures to latents, noise, the teacher's score, the loss.

    The networks are frozen and are no part of the state dict. Sizes, the noise schedule and the
    latents' scale come from the pipeline. A subclass says what the teacher's predicted noise is
    compared with (:meth:`reference`).
    """

    @dataclass
    class Config(BaseModule.Config):
        """Fields as threestudio's guidances have them; further ones:

        ``weighting_strategy``: w(t), see :meth:`.NoiseSchedule.weight`; ``max_weight`` bounds it.
        ``shared_t``: one timestep for all views of a batch. ``sample_posterior``: sample the VAE's
        posterior (else its mean). ``bfloat16_weights``: networks in bfloat16 on any device, where
        ``half_precision_weights`` means float16 on CUDA and nothing on the CPU. ``sample_steps``:
        DDIM steps of ``sample``. Percentages, ``guidance_scale`` and ``grad_clip`` may be
        schedules.
        """

        pretrained_model_name_or_path: str = "phantom"
        guidance_scale: Any = 7.5
        grad_clip: Any = None
        half_precision_weights: bool = True
        bfloat16_weights: bool = False
        min_step_percent: Any = 0.02
        max_step_percent: Any = 0.98
        sqrt_anneal: bool = False
        trainer_max_steps: int = 25000
        use_img_loss: bool = False
        view_dependent_prompting: bool = True
        weighting_strategy: str = "sds"
        max_weight: Any = None
        shared_t: bool = False
        sample_posterior: bool = True
        sample_steps: int = 50
        max_items_eval: int = 4

    cfg: Any
    kind = ""

    def configure(self) -> None:
        from .pipeline import load_pipeline

        self._check_config()
        self.pipeline = load_pipeline(
            self.cfg.pretrained_model_name_or_path,
            device=self.device,
            dtype=self._weights_dtype(),
            parts=("unet", "vae", "scheduler"),
        )
        for part in ("unet", "vae", "scheduler"):
            if getattr(self.pipeline, part) is None:
                raise InputError(self.pipeline.path, part, "nothing", "a folder of that name")
        self.schedule = NoiseSchedule.of(
            self.pipeline.scheduler, self.pipeline.path / "scheduler", self.device
        )
        self._watch = NonFiniteWatch(f"eeg-{self.kind}-guidance")
        self._global_step = 0
        self.update_step(0, 0)

    def reference(self, latents: Tensor, noised: Noised, prompt: Prompt) -> Tensor:
        """Predicted noise (B, C, h, w) that the teacher's is compared with."""
        raise NotImplementedError

    def extra_losses(self, latents: Tensor, prompt: Prompt) -> dict[str, Tensor]:
        """Losses of the guidance's own weights, on detached latents."""
        return {}

    def forward(
        self,
        rgb: Tensor,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        rgb_as_latents: bool = False,
        guidance_eval: bool = False,
        **batch: Any,
    ) -> dict[str, Any]:
        """Return the losses whose gradients are the distillation's.

        Parameters
        ----------
        rgb
            (B, H, W, 3) in [0, 1], with its graph; or latents (B, H, W, C) with
            ``rgb_as_latents``. Resized to the pipeline's size.
        prompt_utils
            A prompt processor's output.
        elevation, azimuth, camera_distances
            (B,); degrees, degrees, world units.
        guidance_eval
            Also return ``eval``: pictures of the denoising, as threestudio saves them.
        **batch
            The rest of the camera batch; VSD reads ``c2w`` or ``mvp_mtx`` (B, 4, 4).

        Returns
        -------
        dict
            ``loss_vsd`` or ``loss_sds``: ``0.5 sum((latents - stop(latents - grad))^2) / B`` with
            ``grad = w(t) (teacher - reference)``; VSD's ``loss_lora``; with ``use_img_loss`` the
            same in picture space as ``loss_*_img``; ``grad_norm``, ``min_step``, ``max_step``.

        Raises
        ------
        InputError
            When a gradient is not finite (on CUDA, a few steps late).
        """
        views = (elevation, azimuth, camera_distances)
        with torch.autocast(self.device.type, enabled=False):
            picture = self._channels_first(rgb.float(), rgb_as_latents)
            latents = picture if rgb_as_latents else self.encode(picture)
            prompt = self.prompt(prompt_utils, views, batch)
            noised = self.add_noise(latents)
            with torch.no_grad():
                teacher = self.teacher(noised.latents, noised.t, prompt.guided)
            reference = self.reference(latents, noised, prompt)
            grad = self.gradient(teacher, reference, noised.t)
            out = self._losses(latents, grad)
            out.update(self.extra_losses(latents.detach(), prompt))
            if self.cfg.use_img_loss and not rgb_as_latents:
                out[f"loss_{self.kind}_img"] = self._image_loss(picture, teacher, reference, noised)
            if guidance_eval:
                out["eval"] = self._evaluation(teacher, noised, prompt, views)
        return out

    @torch.no_grad()
    def gradient(self, teacher: Tensor, reference: Tensor, t: Tensor) -> Tensor:
        """``w(t) (teacher - reference)``, (B, C, h, w), clipped to ``grad_clip`` per value."""
        weight = self.schedule.weight(t, self.cfg.weighting_strategy, self.cfg.max_weight)
        grad = weight * (teacher - reference)
        return grad if self.grad_clip is None else grad.clamp(-self.grad_clip, self.grad_clip)

    def teacher(self, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """Noise predicted by the frozen U-Net with classifier-free guidance, (B, C, h, w).

        ``u + s (c - u)``, c and u from one batch; only c is computed when s is 1. ``context`` is
        (2B, L, D), the conditional half first.
        """
        scale = self.guidance_scale
        if scale == 1.0:
            return self._unet(noisy, t, context[: len(noisy)])
        both = self._unet(torch.cat([noisy, noisy]), torch.cat([t, t]), context)
        conditional, unconditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def encode(self, picture: Tensor) -> Tensor:
        """Latents (B, C, h, w) of pictures (B, 3, H, W) in [0, 1], differentiable."""
        pixels = (picture * 2 - 1).to(self.pipeline.dtype)
        posterior = self.pipeline.vae.encode(pixels).latent_dist
        latents = posterior.sample() if self.cfg.sample_posterior else posterior.mode()
        return latents.float() * self.pipeline.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of latents (B, C, h, w)."""
        scaled = (latents / self.pipeline.scaling_factor).to(self.pipeline.dtype)
        return (self.pipeline.vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1)

    def prompt(self, prompt_utils: Any, views: tuple[Tensor, ...], batch: dict[str, Any]) -> Prompt:
        """Contexts of a batch of views, in the networks' precision."""
        guided = prompt_utils.get_text_embeddings(*views, self.cfg.view_dependent_prompting)
        guided = guided.to(self.device, self.pipeline.dtype)
        return Prompt(guided, plain=guided.chunk(2)[0], camera=None)

    def add_noise(self, latents: Tensor) -> Noised:
        """Draw timesteps and noise and add the noise, without a graph."""
        n = len(latents)
        t = torch.randint(
            self.min_step, self.max_step + 1, (1 if self.cfg.shared_t else n,), device=self.device
        ).expand(n)
        noise = torch.randn_like(latents)
        return Noised(self.schedule.add_noise(latents.detach(), noise, t), noise, t)

    @torch.no_grad()
    def sample(
        self,
        prompt_utils: Any,
        elevation: Tensor,
        azimuth: Tensor,
        camera_distances: Tensor,
        seed: int = 0,
        **batch: Any,
    ) -> Tensor:
        """Pictures (B, H, W, 3) in [0, 1] that the teacher makes for these views, by DDIM."""
        prompt = self.prompt(prompt_utils, (elevation, azimuth, camera_distances), batch)
        return self._sample(
            len(elevation), seed, lambda noisy, t: self.teacher(noisy, t, prompt.guided)
        )

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        """Evaluate the schedules of timesteps, guidance scale and clipping. Idempotent."""
        cfg = self.cfg
        self._global_step = global_step
        self.guidance_scale = float(C(cfg.guidance_scale, epoch, global_step))
        self.grad_clip = None if cfg.grad_clip is None else C(cfg.grad_clip, epoch, global_step)
        low = C(cfg.min_step_percent, epoch, global_step)
        high = C(cfg.max_step_percent, epoch, global_step)
        if cfg.sqrt_anneal:
            low = high = self._annealed(low, high, global_step)
        self.min_step, self.max_step = (int(len(self.schedule) * p) for p in (low, high))
        if not 0 <= self.min_step <= self.max_step < len(self.schedule):
            raise InputError(
                f"eeg-{self.kind}-guidance",
                "min_step_percent, max_step_percent",
                (low, high),
                "0 <= min <= max < 1",
            )
        self._watch.check()

    def _annealed(self, low: float, high: float, global_step: int) -> float:
        done = min(global_step / self.cfg.trainer_max_steps, 1.0)
        return high - (high - low) * done**0.5

    def _check_config(self) -> None:
        strategy = self.cfg.weighting_strategy
        if strategy not in WEIGHTINGS:
            where = f"eeg-{self.kind}-guidance"
            raise InputError(where, "weighting_strategy", strategy, ", ".join(WEIGHTINGS))

    def _weights_dtype(self) -> torch.dtype:
        if self.cfg.bfloat16_weights:
            return torch.bfloat16
        half = self.cfg.half_precision_weights and self.device.type == "cuda"
        return torch.float16 if half else torch.float32

    def _channels_first(self, rgb: Tensor, rgb_as_latents: bool) -> Tensor:
        size = self.pipeline.latent_size if rgb_as_latents else self.pipeline.image_size
        picture = rgb.permute(0, 3, 1, 2)
        if picture.shape[-2:] == (size, size):
            return picture
        shrinks = picture.shape[-1] > size
        return F.interpolate(
            picture, (size, size), mode="bilinear", align_corners=False, antialias=shrinks
        )

    def _unet(self, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        dtype = self.pipeline.dtype
        out = self.pipeline.unet(noisy.to(dtype), t, encoder_hidden_states=context.to(dtype))
        return out.sample.float()

    def _losses(self, latents: Tensor, grad: Tensor) -> dict[str, Any]:
        norm = grad.norm()
        self._watch.add(self._global_step, norm)
        return {
            f"loss_{self.kind}": _pull(latents, grad),
            "grad_norm": norm,
            "min_step": self.min_step,
            "max_step": self.max_step,
        }

    def _image_loss(
        self, picture: Tensor, teacher: Tensor, reference: Tensor, noised: Noised
    ) -> Tensor:
        """The same pull in picture space (HiFA, Zhu et al. 2023, eq. 7)."""
        with torch.no_grad():
            believed, wanted = (
                self.decode(self.schedule.clean(noised.latents, noise, noised.t))
                for noise in (reference, teacher)
            )
            weight = self.schedule.weight(
                noised.t, self.cfg.weighting_strategy, self.cfg.max_weight
            )
            grad = weight * self.schedule.signal_to_noise(noised.t) * (believed - wanted)
        return _pull(picture, grad)

    def _sample(self, n: int, seed: int, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        size = self.pipeline.latent_size
        shape = (n, self.pipeline.unet.config.in_channels, size, size)
        noise = torch.randn(shape, generator=generator, device=self.device)
        start = torch.full((n,), len(self.schedule) - 1, device=self.device)
        latents = self.schedule.denoise(noise, start, self.cfg.sample_steps, predict)
        return self.decode(latents).permute(0, 2, 3, 1)

    @torch.no_grad()
    def _evaluation(
        self, teacher: Tensor, noised: Noised, prompt: Prompt, views: tuple[Tensor, ...]
    ) -> dict[str, Any]:
        n = min(len(noised.t), self.cfg.max_items_eval)
        noisy, noise, t = noised.latents[:n], teacher[:n], noised.t[:n]
        conditional, unconditional = prompt.guided.chunk(2)
        context = torch.cat([conditional[:n], unconditional[:n]])
        step = self.schedule.ladder(t, self.cfg.sample_steps)[1]
        latents = {
            "imgs_noisy": noisy,
            "imgs_1step": self.schedule.ddim_step(noisy, noise, t, step),
            "imgs_1orig": self.schedule.clean(noisy, noise, t),
            "imgs_final": self.schedule.denoise(
                noisy, t, self.cfg.sample_steps, lambda x, s: self.teacher(x, s, context)
            ),
        }
        levels = (t / len(self.schedule)).tolist()
        rows = zip(levels, *(view[:n].tolist() for view in views), strict=True)
        pictures = {name: self.decode(z).permute(0, 2, 3, 1) for name, z in latents.items()}
        return {
            "bs": n,
            "noise_levels": levels,
            "texts": [f"n{n:.2f}\ne{e:.1f}\na{a:.1f}\nc{c:.2f}" for n, e, a, c in rows],
            **pictures,
        }


@register("eeg-sds-guidance")
class SDSGuidance(ScoreDistillation):
    """Score distillation sampling (Poole et al. 2022, arXiv 2209.14988): ``w (teacher - noise)``.

    VSD with the LoRA left out: the render's own score is replaced by the noise that was added.
    """

    @dataclass
    class Config(ScoreDistillation.Config):
        guidance_scale: Any = 10.0

    kind = "sds"

    def reference(self, latents: Tensor, noised: Noised, prompt: Prompt) -> Tensor:
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
        """

        guidance_scale_lora: float = 1.0
        lora_rank: int = 4
        lora_cfg_training: bool = True
        lora_camera_drop: float = 0.1
        lora_n_timestamp_samples: int = 1
        lora_shares_noise: bool = False
        lora_view_dependent_prompting: bool = False
        camera_condition_type: str = "extrinsics"

    kind = "vsd"

    def configure(self) -> None:
        super().configure()
        adapter = CameraLoRA(self.pipeline.unet, self.cfg.lora_rank)
        self._frozen = (adapter,)
        self.lora_layers, self.camera_embedding = adapter.lora_layers, adapter.camera_embedding
        self._shared_prediction: tuple[Tensor, Tensor] | None = None

    def prompt(self, prompt_utils: Any, views: tuple[Tensor, ...], batch: dict[str, Any]) -> Prompt:
        prompt = super().prompt(prompt_utils, views, batch)
        if not self.cfg.lora_view_dependent_prompting:
            plain = prompt_utils.get_text_embeddings(*views, False).chunk(2)[0]
            prompt.plain = plain.to(prompt.guided)
        prompt.camera = self._camera(batch)
        return prompt

    def reference(self, latents: Tensor, noised: Noised, prompt: Prompt) -> Tensor:
        if self.cfg.lora_shares_noise and torch.is_grad_enabled():
            prediction = self._lora(noised.latents, noised.t, prompt.plain, prompt.camera)
            self._shared_prediction = (prediction, noised.noise)
            return prediction.detach()
        with torch.no_grad():
            return self.lora_score(noised.latents, noised.t, prompt)

    def lora_score(self, noisy: Tensor, t: Tensor, prompt: Prompt) -> Tensor:
        """Noise (B, C, h, w) that the LoRA predicts, guided by the camera.

        ``z + s (k - z)``, k with the camera and z without; only k is computed when s is 1.
        """
        scale, camera = float(self.cfg.guidance_scale_lora), _given(prompt.camera)
        if scale == 1.0:
            return self._lora(noisy, t, prompt.plain, camera)
        both = self._lora(
            torch.cat([noisy, noisy]),
            torch.cat([t, t]),
            torch.cat([prompt.plain, prompt.plain]),
            torch.cat([camera, torch.zeros_like(camera)]),
        )
        with_camera, without = both.chunk(2)
        return without + scale * (with_camera - without)

    def extra_losses(self, latents: Tensor, prompt: Prompt) -> dict[str, Tensor]:
        shared, self._shared_prediction = self._shared_prediction, None
        if shared is not None:
            return {"loss_lora": F.mse_loss(*shared)}
        return {"loss_lora": self.lora_loss(latents, prompt)}

    def lora_loss(self, latents: Tensor, prompt: Prompt) -> Tensor:
        """Mean squared error of the LoRA's predicted noise, over all timesteps and fresh noise.

        With ``lora_cfg_training`` a view loses its camera with probability ``lora_camera_drop``.
        """
        k = self.cfg.lora_n_timestamp_samples
        latents, context = latents.repeat(k, 1, 1, 1), prompt.plain.repeat(k, 1, 1)
        camera = _given(prompt.camera).repeat(k, 1)
        t = torch.randint(0, len(self.schedule), (len(latents),), device=self.device)
        noise = torch.randn_like(latents)
        if self.cfg.lora_cfg_training:
            kept = torch.rand(len(camera), 1, device=self.device) >= self.cfg.lora_camera_drop
            camera = camera * kept
        noisy = self.schedule.add_noise(latents, noise, t)
        return F.mse_loss(self._lora(noisy, t, context, camera), noise)

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

    def _lora(self, noisy: Tensor, t: Tensor, context: Tensor, camera: Tensor | None) -> Tensor:
        dtype = self.pipeline.dtype
        adapter: CameraLoRA = self._frozen[0]
        return adapter(noisy.to(dtype), t, context.to(dtype), _given(camera)).float()

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


def _given(camera: Tensor | None) -> Tensor:
    assert camera is not None
    return camera


def _pull(values: Tensor, grad: Tensor) -> Tensor:
    """Loss (scalar) whose gradient with respect to ``values`` (B, ...) is ``grad / B``."""
    target = (values - grad).detach()
    return 0.5 * F.mse_loss(values, target, reduction="sum") / len(values)
