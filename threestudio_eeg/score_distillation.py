"""What VSD and SDS share: pictures to latents, noise, the teacher's score, the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eeg_encoder.errors import InputError

from .acceleration import RecordedStep, can_fuse, prepare_networks, resolve_acceleration
from .guidance_step import Distilled, Levels, Prompt, Step, combine_branches, n_branches
from .host import BaseModule, C
from .noise import WEIGHTINGS, Draws, Noised, NoiseSchedule
from .nonfinite_watch import NonFiniteWatch


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
        the step with its gradients as one CUDA graph (see :mod:`.acceleration`); ``auto`` is
        ``graphs`` on CUDA and ``none`` elsewhere. ``channels_last``: the networks' memory format.
        ``checkpoint_unet``, ``checkpoint_vae``: compute activations again in the backward pass.
        ``vae_slicing``: encode one picture at a time. ``fused_norms``: the networks'
        normalisations, and what stands around them, in kernels of our own (see
        :mod:`.acceleration.fused_blocks`), on CUDA; by default where the step is recorded and the
        networks are of the usual kind.
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
        channels_last: bool = False
        checkpoint_unet: bool = False
        checkpoint_vae: bool = False
        vae_slicing: bool = False
        fused_norms: bool | None = None

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
        """Put trainable parts on the frozen networks, before anything is recorded."""

    def _configure_acceleration(self) -> None:
        cfg = self.cfg
        self.acceleration = resolve_acceleration(cfg.acceleration, self.device)
        self._fused = self._fuses()
        # A CPU takes the renders as they are, with channels innermost.
        innermost = cfg.channels_last or self.device.type == "cpu"
        self._memory_format = torch.channels_last if innermost else torch.contiguous_format
        prepare_networks(
            self.pipeline,
            channels_last=cfg.channels_last,
            unet_checkpointing=self._unet_checkpointing(),
            vae_checkpointing=cfg.checkpoint_vae,
            vae_slicing=cfg.vae_slicing,
            fused_norms=self._fused,
        )
        self._recorded = None if self.acceleration == "none" else RecordedStep(self)

    def _fuses(self) -> bool:
        """Whether the networks' blocks run in our own kernels."""
        wanted, on_gpu = self.cfg.fused_norms, self.device.type == "cuda"
        if wanted is None:
            if not (on_gpu and self.acceleration == "graphs" and find_spec("triton")):
                return False
            return can_fuse(self.pipeline.unet) and can_fuse(self.pipeline.vae.encoder)
        if wanted and not on_gpu:
            expected = "false on a CPU"
            raise InputError(f"eeg-{self.kind}-guidance", "fused_norms", True, expected)
        return bool(wanted)

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

    @property
    def losses_are_apart(self) -> bool:
        """Whether the extra losses can be computed beside the scores, and memory allows it."""
        return False

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
        done = self.compare(step, self.latents_of(step))
        out: dict[str, Any] = {**done.losses, "grad_norm": done.grad_norm}
        out.update(self.extra_losses(done.latents.detach(), step.prompt, step.draws))
        if shown is not None:
            out["eval"] = self._evaluation(done.teacher, done.noised, step.prompt, shown)
        return out

    def latents_of(self, step: Step) -> Tensor:
        """Latents (B, C, h, w) of a step's pictures, with the graph to them."""
        if step.as_latents:
            return step.picture
        return self.encode(step.picture, step.draws.posterior)

    def compare(self, step: Step, latents: Tensor) -> Distilled:
        """Compare the scores of noisy latents; the losses carry the graph to ``step.picture``."""
        picture, prompt, levels = step.picture, step.prompt, step.levels
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
        n = n_branches(scale)
        out = self._unet(torch.cat([noisy] * n), t.repeat(n), context[: n * len(noisy)])
        return combine_branches(out, scale)

    def encode(self, picture: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) of pictures (B, 3, H, W) in [0, 1], differentiable.

        The mean of the VAE's posterior, or the sample that standard normal ``noise`` picks.
        """
        pixels = (picture * 2 - 1).to(self.pipeline.dtype)
        posterior = self.pipeline.vae.encode(pixels).latent_dist
        latents = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        latents = latents.float() * self.pipeline.scaling_factor
        # Fused norms leave channels innermost; what is drawn and compared is not laid out so.
        return latents.contiguous() if self._fused else latents

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
