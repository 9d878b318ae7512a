"""Systems: what is rendered, what the guidance says of it, which losses train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from eeg_encoder.errors import InputError

from .base import (
    Updateable,
    load_module_weights,
    own_config,
    update_end_if_possible,
    update_if_possible,
)
from .config import C, C_max
from .optimizers import make_optimizer, make_scheduler, plain
from .random_state import random_state, restore_random_state
from .registry import find, register, suggestion
from .regularisers import REGULARISERS
from .saving import SaverMixin
from .stage_conversion import converted_geometry

_CUDA_CHECK_INTERVAL = 20
STAGES = ("coarse", "geometry", "texture")


class BaseSystem(pl.LightningModule, Updateable, SaverMixin):
    """Configs, optimisers, the walk over updateable parts, and random states in checkpoints."""

    @dataclass
    class Config:
        loggers: dict = field(default_factory=dict)
        loss: dict = field(default_factory=dict)
        optimizer: dict = field(default_factory=dict)
        scheduler: dict | None = None
        weights: str | None = None
        weights_ignore_modules: list[str] | None = None
        cleanup_after_validation_step: bool = False
        cleanup_after_test_step: bool = False

    cfg: Any

    def __init__(self, cfg: Any = None, resumed: bool = False) -> None:
        super().__init__()
        self.cfg = own_config(self, cfg)
        self._resumed = resumed
        self._status: tuple[int, int] | None = None
        self._pending_random_state: dict[str, Any] | None = None
        self._state_outside_evaluation: dict[str, Any] | None = None
        self.configure()
        if self.cfg.weights is not None:
            self.load_weights(self.cfg.weights, self.cfg.weights_ignore_modules)

    def configure(self) -> None:
        """Build the parts."""

    def load_weights(self, path: str, ignore_modules: list[str] | None = None) -> None:
        """Load what fits from another trial's checkpoint, leaving ``ignore_modules`` out."""
        state, epoch, global_step = load_module_weights(path, ignore_modules=ignore_modules)
        self.load_state_dict(state, strict=False)
        self.do_update_step(epoch, global_step, on_load_weights=True)

    def set_resume_status(self, epoch: int, global_step: int) -> None:
        """Say which step the loaded weights come from, for evaluation without a fit."""
        self._status = (epoch, global_step)

    @property
    def true_current_epoch(self) -> int:
        """Epoch of the weights, in training and in evaluation of a checkpoint."""
        return self._status[0] if self._status is not None else self.current_epoch

    @property
    def true_global_step(self) -> int:
        """Step of the weights, in training and in evaluation of a checkpoint."""
        return self._status[1] if self._status is not None else self.global_step

    def C(self, value: Any) -> float:
        """Evaluate a scheduled value at the present step."""
        return C(value, self.true_current_epoch, self.true_global_step)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimiser that the config describes."""
        return make_optimizer(self.cfg.optimizer, self)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer()
        if self.cfg.scheduler is None:
            return optimizer
        schedule = make_scheduler(self.cfg.scheduler, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = self._state_outside_evaluation or random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._pending_random_state = checkpoint.get("random_state")

    def restore_pending_random_state(self) -> None:
        """Go on with the generators of the checkpoint that was loaded; the second call is void."""
        state, self._pending_random_state = self._pending_random_state, None
        if state is not None:
            restore_random_state(state)

    def update_data(self, dataset: Any) -> None:
        """Tell a data set which step training stands at."""
        update_if_possible(dataset, self.true_current_epoch, self.true_global_step)

    def _begin_step(self, dataset: Any) -> None:
        self.update_data(dataset)
        self.do_update_step(self.true_current_epoch, self.true_global_step)

    def _end_step(self, dataset: Any) -> None:
        epoch, step = self.true_current_epoch, self.true_global_step
        update_end_if_possible(dataset, epoch, step)
        self.do_update_step_end(epoch, step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._begin_step(_dataset(self.trainer.train_dataloader))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end_step(_dataset(self.trainer.train_dataloader))

    def on_validation_start(self) -> None:
        self._state_outside_evaluation = random_state()

    def on_validation_end(self) -> None:
        if self._state_outside_evaluation is not None:
            restore_random_state(self._state_outside_evaluation)
        self._state_outside_evaluation = None

    def on_validation_batch_start(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._begin_step(_dataset(self.trainer.val_dataloaders))

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._begin_step(_dataset(self.trainer.test_dataloaders))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._free_memory(self.cfg.cleanup_after_validation_step)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._free_memory(self.cfg.cleanup_after_test_step)

    def _free_memory(self, wanted: bool) -> None:
        if wanted and self.device.type == "cuda":
            torch.cuda.empty_cache()


def _dataset(loaders: Any) -> Any:
    loader = loaders[0] if isinstance(loaders, list) else loaders
    return getattr(loader, "dataset", None)


class FiniteLosses:
    """Stop training when a loss term is not finite, and name the term.

    Looking at a value on a CUDA device waits for the device, so there the terms are looked at
    every few steps, and always before a checkpoint is written.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, list[str], Tensor]] = []

    def add(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Take in the terms of a step."""
        values = torch.stack([value.detach().float() for value in terms.values()])
        self._seen.append((step, list(terms), values))
        if values.device.type != "cuda" or len(self._seen) >= _CUDA_CHECK_INTERVAL:
            self.check()

    def check(self) -> None:
        """Look at the terms taken in.

        Raises
        ------
        InputError
            When one is nan or infinite.
        """
        seen, self._seen = self._seen, []
        for step, names, values in seen:
            for name, value in zip(names, values.tolist(), strict=True):
                if not abs(value) < float("inf"):
                    expected = "a finite number (try a lower learning rate or guidance.grad_clip)"
                    raise InputError(f"training step {step}", name, value, expected)


class BaseLift3DSystem(BaseSystem):
    """Geometry, material, background and renderer, with an exporter made when asked.

    ``n_particles`` above one makes as many geometries, each with its renderer, that share all else
    (ProlificDreamer's particles). The first is ``geometry`` and ``renderer``, as without; the rest
    is in ``particles``. :meth:`select_particle` says which one is rendered and exported.
    """

    @dataclass
    class Config(BaseSystem.Config):
        geometry_type: str = ""
        geometry: dict = field(default_factory=dict)
        geometry_convert_from: str | None = None
        geometry_convert_inherit_texture: bool = False
        geometry_convert_override: dict = field(default_factory=dict)
        material_type: str = ""
        material: dict = field(default_factory=dict)
        background_type: str = ""
        background: dict = field(default_factory=dict)
        renderer_type: str = ""
        renderer: dict = field(default_factory=dict)
        guidance_type: str = ""
        guidance: dict = field(default_factory=dict)
        prompt_processor_type: str = ""
        prompt_processor: dict = field(default_factory=dict)
        exporter_type: str = "mesh-exporter"
        exporter: dict = field(default_factory=dict)
        n_particles: int = 1

    def configure(self) -> None:
        if self.cfg.n_particles < 1:
            raise InputError("system", "n_particles", self.cfg.n_particles, "1 or more")
        self.particle = 0
        self.geometry = self._make_geometry(0)
        self.material = find(self.cfg.material_type)(self.cfg.material)
        self.background = find(self.cfg.background_type)(self.cfg.background)
        self.renderer = self._make_renderer(self.geometry)
        self.particles = nn.ModuleList()
        for number in range(1, self.cfg.n_particles):
            geometry = self._make_geometry(number)
            renderer = self._make_renderer(geometry)
            self.particles.append(nn.ModuleDict({"geometry": geometry, "renderer": renderer}))

    def _make_geometry(self, number: int) -> Any:
        cfg, kind = self.cfg, find(self.cfg.geometry_type)
        begun = self._resumed or cfg.weights is not None
        if cfg.geometry_convert_from is None or begun:
            return kind(cfg.geometry)
        return converted_geometry(
            kind,
            cfg.geometry,
            cfg.geometry_convert_from,
            module=_particle_name("geometry", number),
            override=cfg.geometry_convert_override,
            inherit_texture=cfg.geometry_convert_inherit_texture,
        )

    def _make_renderer(self, geometry: Any) -> Any:
        return find(self.cfg.renderer_type)(
            self.cfg.renderer,
            geometry=geometry,
            material=self.material,
            background=self.background,
        )

    @property
    def geometries(self) -> list[Any]:
        """The particles' geometries."""
        return [self.geometry, *(particle.geometry for particle in self.particles)]

    def select_particle(self, number: int) -> None:
        """Choose what :meth:`forward` renders and :meth:`make_exporter` exports."""
        if not 0 <= number < self.cfg.n_particles:
            expected = f"0 to {self.cfg.n_particles - 1}"
            raise InputError("system", "particle", number, expected)
        self.particle = number

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Build the optimiser: every particle's groups are as the first's.

        Geometries may have groups of their own, with learning rates from their own config.
        """
        settings = plain(self.cfg.optimizer)
        if settings.get("params") is None:
            return make_optimizer(settings, self)
        groups = {
            _particle_name(dotted, number): options
            for dotted, options in settings["params"].items()
            for number in range(self.cfg.n_particles if _is_of_particle(dotted) else 1)
        }
        more = [
            {**group, "name": _particle_name(f"geometry.{group['name']}", number)}
            for number, geometry in enumerate(self.geometries)
            for group in getattr(geometry, "own_groups", list)()
        ]
        return make_optimizer({**settings, "params": groups}, self, more)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow the learning rates that are schedules."""
        for group in optimizer.param_groups:
            if isinstance(group.get("schedule"), list):
                group["lr"] = self.C(OmegaConf.create(group["schedule"]))

    def forward(self, batch: dict[str, Any], **options: Any) -> dict[str, Any]:
        if self.particle == 0:
            return self.renderer(**batch, **options)
        return self.particles.get_submodule(f"{self.particle - 1}.renderer")(**batch, **options)

    def make_exporter(self) -> Any:
        """Build the exporter that the config names, for the selected particle."""
        return find(self.cfg.exporter_type)(
            self.cfg.exporter,
            geometry=self.geometries[self.particle],
            material=self.material,
            background=self.background,
        )

    @torch.no_grad()
    def export(self) -> list[Any]:
        """Write ``save/it{step}-export/`` and return the paths written.

        Of several particles the files' names end in ``-0``, ``-1``, ….
        """
        self.eval()
        self.do_update_step(self.true_current_epoch, self.true_global_step)
        folder = f"it{self.true_global_step}-export"
        paths = []
        for number in range(self.cfg.n_particles):
            self.select_particle(number)
            for output in self.make_exporter()():
                name = self._numbered(output.save_name, number)
                paths.append(self.save_mesh(f"{folder}/{name}", output.mesh))
        self.select_particle(0)
        return paths

    def _numbered(self, filename: str, number: int) -> str:
        """A file's or folder's name with the particle's number, where there are several."""
        if self.cfg.n_particles == 1:
            return filename
        stem, dot, suffix = filename.rpartition(".")
        return f"{stem}-{number}{dot}{suffix}" if dot else f"{filename}-{number}"


def _is_of_particle(dotted: str) -> bool:
    return dotted.split(".")[0] in ("geometry", "renderer")


def _particle_name(dotted: str, number: int) -> str:
    """Where a particle keeps what the first one has at ``dotted``."""
    return dotted if number == 0 else f"particles.{number - 1}.{dotted}"


class DistillationSystem(BaseLift3DSystem):
    """Train a field by score distillation: guidance on random views, plus regularisers.

    The total loss is the sum of ``loss_x * C(lambda_x)`` over what the guidance returns and over
    :data:`.regularisers.REGULARISERS`. The guidance is made in ``configure``, so its trainable
    weights are optimised and in the checkpoints.
    """

    def configure(self) -> None:
        super().configure()
        self.guidance = find(self.cfg.guidance_type)(self.cfg.guidance)
        self.prompt_processor = find(self.cfg.prompt_processor_type)(self.cfg.prompt_processor)
        self.prompt_utils = self.prompt_processor()
        self._finite = FiniteLosses()
        self._weights_checked = False
        self._loss_weights: dict[str, Any] | None = None

    def on_fit_start(self) -> None:
        """Give a fresh geometry the shape that its config asks for."""
        started = (self.cfg.weights, self.cfg.geometry_convert_from) != (None, None)
        if self._resumed or started:
            return
        for geometry in self.geometries:
            if hasattr(geometry, "initialize_shape"):
                geometry.initialize_shape()

    def guided_picture(self, out: dict[str, Any]) -> Tensor:
        """What the guidance looks at, (B, H, W, 3) in [0, 1]."""
        picture: Tensor = out["comp_rgb"]
        return picture

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.select_particle(self.true_global_step % self.cfg.n_particles)
        out = self(batch)
        picture = self.guided_picture(out)
        guided = self.guidance(picture, self.prompt_utils, **batch, rgb_as_latents=False)
        losses = {name: value for name, value in guided.items() if name.startswith("loss_")}
        self._check_weights(losses)
        losses.update(self._regularisation(out))
        self._finite.add(self.true_global_step, losses)
        self._log_scalars("train/", {**guided, **losses})
        return self._weighted_sum(losses)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._finite.check()
        super().on_save_checkpoint(checkpoint)

    def _lambda(self, loss_name: str) -> Any:
        """Weight of a loss as configured, or None. Read once: many are looked up at every step."""
        if self._loss_weights is None:
            self._loss_weights = plain(self.cfg.loss)
        return self._loss_weights.get("lambda_" + loss_name.removeprefix("loss_"))

    def _check_weights(self, guidance_losses: Mapping[str, Tensor]) -> None:
        if self._weights_checked:
            return
        given = [str(key) for key in self.cfg.loss]
        for name in guidance_losses:
            if self._lambda(name) is None:
                key = "lambda_" + name.removeprefix("loss_")
                raise InputError("system.loss", key, "nothing", f"a weight for {name}")
        known = [f"lambda_{name}" for name in REGULARISERS]
        known += ["lambda_" + name.removeprefix("loss_") for name in guidance_losses]
        for key in given:
            if key not in known and C_max(self.cfg.loss[key]) > 0:
                raise InputError("system.loss", key, "an unknown loss", suggestion(key, known))
        self._weights_checked = True

    def _regularisation(self, out: dict[str, Any]) -> dict[str, Tensor]:
        return {
            f"loss_{name}": regulariser(out)
            for name, regulariser in REGULARISERS.items()
            if self.C(self._lambda(name) or 0.0) > 0
        }

    def _weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros((), device=self.device)
        weights = {name: float(self.C(self._lambda(name))) for name in losses}
        self._log_scalars(
            "train_params/lambda_", {n.removeprefix("loss_"): w for n, w in weights.items()}
        )
        for name, value in losses.items():
            total = total + value * weights[name]
        return total

    def _log_scalars(self, prefix: str, values: Mapping[str, Any]) -> None:
        """Log what is scalar, on the steps that the loggers write: each value costs a copy."""
        if (self.global_step + 1) % getattr(self._trainer, "log_every_n_steps", 1):
            return
        for name, value in values.items():
            if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
                self.log(f"{prefix}{name}", value)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        for number in range(self.cfg.n_particles):
            name = self._numbered(f"it{self.true_global_step}", number)
            self._save_views(batch, number, f"{name}-{{index}}.png")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        for number in range(self.cfg.n_particles):
            name = self._numbered(f"it{self.true_global_step}-test", number)
            self._save_views(batch, number, f"{name}/{{index}}.png")

    def on_test_epoch_end(self) -> None:
        for number in range(self.cfg.n_particles):
            name = self._numbered(f"it{self.true_global_step}-test", number)
            self.save_image_sequence(f"{name}.mp4", name)

    def _save_views(self, batch: dict[str, Any], number: int, filename: str) -> None:
        self.select_particle(number)
        out = self(batch)
        for i, index in enumerate(batch["index"].tolist()):
            pictures = [
                out[name][i] for name in ("comp_rgb", "comp_normal", "opacity") if name in out
            ]
            self.save_image_row(filename.format(index=index), pictures)
        self.select_particle(0)


@register("prolificdreamer-system")
class ProlificDreamer(DistillationSystem):
    """ProlificDreamer: a field, then a mesh, trained by VSD (Wang et al. 2023, arXiv 2305.16213).

    ``stage`` is threestudio's: in ``geometry`` the guidance looks at normals and no colour is
    rendered, in ``coarse`` and ``texture`` it looks at colours. With several particles each step
    trains the next one, and all train the one LoRA.
    """

    @dataclass
    class Config(BaseLift3DSystem.Config):
        stage: str = "coarse"
        visualize_samples: bool = False

    def configure(self) -> None:
        if self.cfg.stage not in STAGES:
            raise InputError("system", "stage", self.cfg.stage, f"one of {', '.join(STAGES)}")
        super().configure()
        if self.cfg.stage == "geometry" and not hasattr(self.geometry, "surface"):
            expected = "a geometry with a mesh for stage geometry: tetrahedra-sdf-grid"
            raise InputError("system", "geometry_type", self.cfg.geometry_type, expected)

    def forward(self, batch: dict[str, Any], **options: Any) -> dict[str, Any]:
        if self.cfg.stage == "geometry" and self.training:
            options["render_rgb"] = False
        return super().forward(batch, **options)

    def guided_picture(self, out: dict[str, Any]) -> Tensor:
        """Normals in the stage ``geometry``, else colours."""
        picture: Tensor = out["comp_normal" if self.cfg.stage == "geometry" else "comp_rgb"]
        return picture

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.cfg.visualize_samples and batch_idx == 0:
            sample = self.guidance.sample(self.prompt_utils, **batch, seed=self.true_global_step)
            lora = self.guidance.sample_lora(self.prompt_utils, **batch)
            name = f"it{self.true_global_step}-{int(batch['index'][0])}-sample.png"
            self.save_image_row(name, [sample[0], lora[0]])


@register("gaussian-splatting-system")
class GaussianSplatting(DistillationSystem):
    """3D Gaussians trained by score distillation, under threestudio-3dgs's name.

    Learning rates are the geometry's own. Any other system of this host trains Gaussians too.
    """

    @dataclass
    class Config(BaseLift3DSystem.Config):
        visualize_samples: bool = False

    def configure(self) -> None:
        if self.cfg.visualize_samples:
            expected = "false (prolificdreamer-system shows samples)"
            raise InputError("system", "visualize_samples", True, expected)
        super().configure()


@register("dreamfusion-system")
class DreamFusion(DistillationSystem):
    """DreamFusion: a field trained by SDS (Poole et al. 2022, arXiv 2209.14988)."""
