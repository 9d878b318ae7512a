"""Score distillation from a frozen latent diffusion model: VSD and SDS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from .acceleration import RecordedStep, prepare_networks, resolve_acceleration
from .adapters import CameraLoRA
from .host import BaseModule, C, register
from .noise import WEIGHTINGS, Draws, Noised, NoiseSchedule
from .own_optimizer import OwnOptimizer, UntrainedWatch

CAMERA_CONDITIONS = {"extrinsics": "c2w", "mvp": "mvp_mtx"}


@dataclass
class Prompt:
    """Context tokens of a batch of B views.

    ``guided`` is (2B, L, D), conditional half first; ``plain`` (B, L, D) is the conditional
    context that the LoRA sees. ``camera`` (B, 16) is the LoRA's, or None. ``which`` (B,) is the
    LoRA of each view, or None where there is only one.
    """

    guided: Tensor
    plain: Tensor
    camera: Tensor | None = None
    which: Tensor | None = None


@dataclass
class Levels:
    """What schedules give a step, as numbers or, in a recorded step, as scalars on the device.

    A guidance scale of 1 is always the number: it decides what is computed.
    """

    guidance_scale: float | Tensor
    grad_clip: float | Tensor | None

    def on(self, device: torch.device) -> Levels:
        """The same on a device, without waiting for it."""
        scale, clip = self.guidance_scale, self.grad_clip
        return Levels(
            scale if scale == 1.0 else torch.full((), float(scale), device=device),
            None if clip is None else torch.full((), float(clip), device=device),
        )


@dataclass
class Step:
    """All that the losses of a step depend on, besides the networks.

    ``picture`` is (B, 3, H, W) in [0, 1], or latents (B, C, h, w) with ``as_latents``.
    """

    picture: Tensor
    prompt: Prompt
    draws: Draws
    levels: Levels
    as_latents: bool = False


@dataclass
class Distilled:
    """What a step says of its pictures: ``losses`` by name, and what they were made from."""

    latents: Tensor
    noised: Noised
    teacher: Tensor
    grad_norm: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


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

        ``n_trials``: objects side by side in a batch; views are sorted by object, equally many of
        each, and the losses are sums over objects. ``acceleration``: ``none``; ``graphs`` records
        the step with its gradients as one CUDA graph (see :mod:`.acceleration`); ``compile`` also
        compiles the networks, which takes minutes; ``auto`` is ``graphs`` on CUDA and ``none``
        elsewhere. ``compile_mode`` is torch.compile's. ``channels_last``: the networks' memory
        format. ``checkpoint_unet``, ``checkpoint_vae``: compute activations again in the backward
        pass. ``vae_slicing``: encode one picture at a time.
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
        n_trials: int = 1
        acceleration: str = "auto"
        compile_mode: str = "default"
        channels_last: bool = False
        checkpoint_unet: bool = False
        checkpoint_vae: bool = False
        vae_slicing: bool = False

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
        self.configure_adapters()
        self._configure_acceleration()
        self.update_step(0, 0)

    def configure_adapters(self) -> None:
        """Put trainable parts on the frozen networks, before anything is compiled."""

    def _configure_acceleration(self) -> None:
        cfg = self.cfg
        self.acceleration = resolve_acceleration(cfg.acceleration, self.device)
        # A CPU takes the renders as they are, with channels innermost.
        innermost = cfg.channels_last or self.device.type == "cpu"
        self._memory_format = torch.channels_last if innermost else torch.contiguous_format
        prepare_networks(
            self.pipeline,
            channels_last=cfg.channels_last,
            unet_checkpointing=self._unet_checkpointing(),
            vae_checkpointing=cfg.checkpoint_vae,
            vae_slicing=cfg.vae_slicing,
            compile_mode=cfg.compile_mode if self.acceleration == "compile" else None,
        )
        self._recorded = None if self.acceleration == "none" else RecordedStep(self)

    def reference(self, noised: Noised, prompt: Prompt) -> Tensor:
        """Predicted noise (B, C, h, w) that the teacher's is compared with."""
        raise NotImplementedError

    def scores(
        self, noised: Noised, prompt: Prompt, scale: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Noise predicted by the teacher, and what it is compared with."""
        with torch.no_grad():
            teacher = self.teacher(noised.latents, noised.t, prompt.guided, scale)
        return teacher, self.reference(noised, prompt)

    def extra_losses(self, latents: Tensor, prompt: Prompt, draws: Draws) -> dict[str, Tensor]:
        """Losses of the guidance's own weights, on detached latents."""
        return {}

    def trained_parameters(self) -> list[Tensor]:
        """Weights that the extra losses have gradients for."""
        return []

    def follow(self, losses: dict[str, Any]) -> dict[str, Any]:
        """Do what is done once a step with its losses; return those for the system."""
        return losses

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
            Also return ``eval``: pictures of the denoising, as threestudio saves them. Such a
            step is not accelerated.
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
            When a gradient is not finite (on CUDA, a few steps late), or the views cannot be
            shared out equally over ``n_trials``.
        """
        views = (elevation, azimuth, camera_distances)
        with torch.autocast(self.device.type, enabled=False):
            picture = self._channels_first(rgb.float(), rgb_as_latents)
            step = Step(
                picture,
                self.prompt(prompt_utils, views, batch),
                self.draw(len(picture), rgb_as_latents),
                Levels(self.guidance_scale, self.grad_clip),
                rgb_as_latents,
            )
            if self._recorded is not None and torch.is_grad_enabled() and not guidance_eval:
                out = self._recorded(step)
            else:
                out = self._eager(step, views if guidance_eval else None)
            out = self.follow(out)
        self._watch.add(self._global_step, out["grad_norm"])
        return {**out, "min_step": self.min_step, "max_step": self.max_step}

    def _eager(self, step: Step, shown: tuple[Tensor, ...] | None) -> dict[str, Any]:
        done = self.distil(step)
        out: dict[str, Any] = {**done.losses, "grad_norm": done.grad_norm}
        out.update(self.extra_losses(done.latents.detach(), step.prompt, step.draws))
        if shown is not None:
            out["eval"] = self._evaluation(done.teacher, done.noised, step.prompt, shown)
        return out

    def distil(self, step: Step) -> Distilled:
        """Compare the scores of noisy latents; the losses carry the graph to ``step.picture``."""
        picture, prompt, levels = step.picture, step.prompt, step.levels
        latents = picture if step.as_latents else self.encode(picture, step.draws.posterior)
        noised = self.add_noise(latents, step.draws)
        teacher, reference = self.scores(noised, prompt, levels.guidance_scale)
        grad = self.gradient(teacher, reference, noised.t, levels.grad_clip)
        done = Distilled(latents, noised, teacher, grad.norm())
        done.losses[f"loss_{self.kind}"] = self._pull(latents, grad)
        if self.cfg.use_img_loss and not step.as_latents:
            image_loss = self._image_loss(picture, teacher, reference, noised)
            done.losses[f"loss_{self.kind}_img"] = image_loss
        return done

    @torch.no_grad()
    def gradient(
        self, teacher: Tensor, reference: Tensor, t: Tensor, clip: float | Tensor | None = None
    ) -> Tensor:
        """``w(t) (teacher - reference)``, (B, C, h, w), each value clipped to ``clip``."""
        weight = self.schedule.weight(t, self.cfg.weighting_strategy, self.cfg.max_weight)
        grad = weight * (teacher - reference)
        return grad if clip is None else grad.clamp(-clip, clip)  # type: ignore[arg-type]

    def teacher(
        self, noisy: Tensor, t: Tensor, context: Tensor, scale: float | Tensor | None = None
    ) -> Tensor:
        """Noise predicted by the frozen U-Net with classifier-free guidance, (B, C, h, w).

        ``u + s (c - u)``, c and u from one batch; only c is computed when s is the number 1.
        ``context`` is (2B, L, D), the conditional half first. Without ``scale``, that of the
        present step.
        """
        scale = self.guidance_scale if scale is None else scale
        n = _n_branches(scale)
        out = self._unet(torch.cat([noisy] * n), t.repeat(n), context[: n * len(noisy)])
        return _guided(out, scale)

    def encode(self, picture: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) of pictures (B, 3, H, W) in [0, 1], differentiable.

        The mean of the VAE's posterior, or the sample that standard normal ``noise`` picks.
        """
        pixels = (picture * 2 - 1).to(self.pipeline.dtype)
        posterior = self.pipeline.vae.encode(pixels).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return latents.float() * self.pipeline.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of latents (B, C, h, w)."""
        scaled = (latents / self.pipeline.scaling_factor).to(self.pipeline.dtype)
        return (self.pipeline.vae.decode(scaled).sample.float() / 2 + 0.5).clamp(0, 1)

    def decode_latents(
        self, latents: Tensor, latent_height: int | None = None, latent_width: int | None = None
    ) -> Tensor:
        """:meth:`decode` of latents of any size, as threestudio's latent systems call it."""
        side = self.pipeline.latent_size
        size = (latent_height or side, latent_width or side)
        if latents.shape[-2:] != size:
            latents = F.interpolate(latents, size, mode="bilinear", align_corners=False)
        return self.decode(latents)

    def prompt(self, prompt_utils: Any, views: tuple[Tensor, ...], batch: dict[str, Any]) -> Prompt:
        """Contexts of a batch of views, in the networks' precision."""
        if getattr(prompt_utils, "use_perp_neg", False):
            where = f"eeg-{self.kind}-guidance"
            raise InputError(where, "prompt_processor.use_perp_neg", True, "false: not done here")
        guided = prompt_utils.get_text_embeddings(*views, self.cfg.view_dependent_prompting)
        guided = guided.to(self.device, self.pipeline.dtype)
        self._check_number(len(guided) // 2)
        return Prompt(guided, plain=guided.chunk(2)[0])

    def draw(self, n: int, as_latents: bool = False) -> Draws:
        """Draw the random numbers of a step on n views, on the device."""
        size, dtype = self.pipeline.latent_size, self.pipeline.dtype
        shape = (n, self.pipeline.unet.config.in_channels, size, size)
        sampled = self.cfg.sample_posterior and not as_latents
        posterior = torch.randn(shape, dtype=dtype, device=self.device) if sampled else None
        n_times = self.cfg.n_trials if self.cfg.shared_t else n
        t = torch.randint(self.min_step, self.max_step + 1, (n_times,), device=self.device)
        noise = torch.empty(shape, device=self.device, memory_format=self._memory_format).normal_()
        return Draws(posterior, t[:, None].expand(-1, n // n_times).flatten(), noise)

    def add_noise(self, latents: Tensor, draws: Draws) -> Noised:
        """Add a step's noise to latents, without a graph."""
        noisy = self.schedule.add_noise(latents.detach(), draws.noise, draws.t)
        return Noised(noisy, draws.noise, draws.t)

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
        if picture.shape[-2:] != (size, size):
            shrinks = picture.shape[-1] > size
            picture = F.interpolate(
                picture, (size, size), mode="bilinear", align_corners=False, antialias=shrinks
            )
        return picture.contiguous(memory_format=self._memory_format)

    def _unet(self, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        dtype = self.pipeline.dtype
        out = self.pipeline.unet(noisy.to(dtype), t, encoder_hidden_states=context.to(dtype))
        return out.sample.float()

    def _pull(self, values: Tensor, grad: Tensor) -> Tensor:
        """Loss (scalar) whose gradient with respect to ``values`` (B, ...) is ``grad / b``.

        b is the number of views of one object.
        """
        target = (values - grad).detach()
        n_views = len(values) // self.cfg.n_trials
        return 0.5 * F.mse_loss(values, target, reduction="sum") / n_views

    def _unet_checkpointing(self) -> Callable[..., Any] | None:
        """How the U-Net's activations are computed again; None where it has no backward pass."""
        return None

    def _check_number(self, n_views: int) -> None:
        if n_views % self.cfg.n_trials:
            expected = f"a multiple of n_trials, {self.cfg.n_trials}"
            raise InputError(f"eeg-{self.kind}-guidance", "number of views", n_views, expected)

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
        return self._pull(picture, grad)

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
        n, n_bare = _n_branches(scale), _n_branches(scale) * len(noised.t)
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
        return _guided(out[:n_bare], scale), _guided(out[n_bare:], lora_scale)

    def reference(self, noised: Noised, prompt: Prompt) -> Tensor:
        if self.cfg.lora_shares_noise and torch.is_grad_enabled():
            camera = _given(prompt.camera)
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
        return _guided(self._lora(*self._lora_batch(noisy, t, prompt)), scale)

    def _lora_batch(self, noisy: Tensor, t: Tensor, prompt: Prompt) -> tuple[Any, ...]:
        """Arguments of ``_lora`` with the branches of the score: k and, when it counts, z."""
        n, camera = _n_branches(float(self.cfg.guidance_scale_lora)), _given(prompt.camera)
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
        t, noise = _given(draws.lora_t), _given(draws.lora_noise)
        camera = _given(prompt.camera).repeat(k, 1)
        if draws.lora_camera_kept is not None:
            camera = camera * draws.lora_camera_kept
        which = None if prompt.which is None else prompt.which.repeat(k)
        noisy = self.schedule.add_noise(latents.repeat(k, 1, 1, 1), noise, t)
        predicted = self._lora(noisy, t, prompt.plain.repeat(k, 1, 1), camera, which)
        return F.mse_loss(predicted, noise) * self.cfg.n_trials

    def trained_parameters(self) -> list[Tensor]:
        return [p for p in self._frozen[0].parameters() if p.requires_grad]

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


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _n_branches(scale: float | Tensor) -> int:
    """Samples a view of a guided prediction: the branch guided to, and another unless s is 1."""
    return 1 if isinstance(scale, float) and scale == 1.0 else 2


def _guided(out: Tensor, scale: float | Tensor) -> Tensor:
    """``u + s (c - u)`` of a batch with the half c first, or c alone when s is 1."""
    if _n_branches(scale) == 1:
        return out
    guided, other = out.chunk(2)
    return other + scale * (guided - other)
