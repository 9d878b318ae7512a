"""Systems: what is rendered, what the guidance says of it, which losses train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from eeg_encoder.errors import InputError

from .base import (
    Updateable,
    load_module_weights,
    parse_structured,
    update_end_if_possible,
    update_if_possible,
)
from .config import C, C_max
from .optimizers import make_optimizer, make_scheduler
from .random_state import random_state, restore_random_state
from .registry import find, name_of, register, suggestion
from .regularisers import REGULARISERS
from .saving import SaverMixin

_CUDA_CHECK_INTERVAL = 20


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
        self.cfg = parse_structured(self.Config, cfg, f"config of {name_of(type(self))}")
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

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.cfg.optimizer, self)
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
    """Geometry, material, background and renderer, with an exporter made when asked."""

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

    def configure(self) -> None:
        if self.cfg.geometry_convert_from is not None:
            raise InputError(
                "system",
                "geometry_convert_from",
                self.cfg.geometry_convert_from,
                "null: the embedded host has one representation, and nothing to convert to",
            )
        self.geometry = find(self.cfg.geometry_type)(self.cfg.geometry)
        self.material = find(self.cfg.material_type)(self.cfg.material)
        self.background = find(self.cfg.background_type)(self.cfg.background)
        self.renderer = find(self.cfg.renderer_type)(
            self.cfg.renderer,
            geometry=self.geometry,
            material=self.material,
            background=self.background,
        )

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return self.renderer(**batch)

    def make_exporter(self) -> Any:
        """Build the exporter that the config names."""
        return find(self.cfg.exporter_type)(
            self.cfg.exporter,
            geometry=self.geometry,
            material=self.material,
            background=self.background,
        )

    @torch.no_grad()
    def export(self) -> list[Any]:
        """Write ``save/it{step}-export/`` and return the paths written."""
        self.eval()
        self.do_update_step(self.true_current_epoch, self.true_global_step)
        folder = f"it{self.true_global_step}-export"
        return [
            self.save_mesh(f"{folder}/{output.save_name}", output.mesh)
            for output in self.make_exporter()()
        ]


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

    def on_fit_start(self) -> None:
        """Give a fresh geometry the shape that its config asks for."""
        fresh = not self._resumed and self.cfg.weights is None
        if fresh and hasattr(self.geometry, "initialize_shape"):
            self.geometry.initialize_shape()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        out = self(batch)
        guided = self.guidance(out["comp_rgb"], self.prompt_utils, **batch, rgb_as_latents=False)
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
        return self.cfg.loss.get("lambda_" + loss_name.removeprefix("loss_"))

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
            if self.C(self.cfg.loss.get(f"lambda_{name}", 0.0)) > 0
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
        self._save_views(batch, f"it{self.true_global_step}-{{index}}.png")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._save_views(batch, f"it{self.true_global_step}-test/{{index}}.png")

    def on_test_epoch_end(self) -> None:
        name = f"it{self.true_global_step}-test"
        self.save_image_sequence(f"{name}.mp4", name)

    def _save_views(self, batch: dict[str, Any], filename: str) -> None:
        out = self(batch)
        for i, index in enumerate(batch["index"].tolist()):
            pictures = [out["comp_rgb"][i]]
            if "comp_normal" in out:
                pictures.append(out["comp_normal"][i])
            pictures.append(out["opacity"][i])
            self.save_image_row(filename.format(index=index), pictures)


@register("prolificdreamer-system")
class ProlificDreamer(DistillationSystem):
    """ProlificDreamer's first stage: a field trained by VSD (Wang et al. 2023, arXiv 2305.16213).

    ``stage`` is threestudio's; "geometry" and "texture" need a mesh representation, which the
    embedded host does not have.
    """

    @dataclass
    class Config(BaseLift3DSystem.Config):
        stage: str = "coarse"
        visualize_samples: bool = False

    def configure(self) -> None:
        if self.cfg.stage != "coarse":
            raise InputError(
                "system",
                "stage",
                self.cfg.stage,
                "coarse (geometry and texture refine a mesh: run them on upstream threestudio)",
            )
        super().configure()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if self.cfg.visualize_samples and batch_idx == 0:
            sample = self.guidance.sample(self.prompt_utils, **batch, seed=self.true_global_step)
            lora = self.guidance.sample_lora(self.prompt_utils, **batch)
            name = f"it{self.true_global_step}-{int(batch['index'][0])}-sample.png"
            self.save_image_row(name, [sample[0], lora[0]])


@register("dreamfusion-system")
class DreamFusion(DistillationSystem):
    """DreamFusion: a field trained by SDS (Poole et al. 2022, arXiv 2209.14988)."""
