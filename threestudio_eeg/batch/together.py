"""Several objects on one device in one process: every field its own, one guidance for all.

Each object is an ordinary system with its own optimiser, random numbers and trial folder; only the
guidance is shared. It sees the views of all objects as one batch, so the U-Net is called as often
as for one object. The LoRA of object i is slice i of the guidance's adapters; the systems' own
parameters are views of these slices, so checkpoints look as if each object had been made alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from eeg_encoder.errors import InputError
from eeg_encoder.files import whole_file

from ..acceleration import TrialPrompts
from ..builtin.base import device_scope, load_checkpoint, update_if_possible
from ..builtin.config import compose, dump_config, load_config
from ..builtin.optimizers import plain
from ..builtin.random_state import StepLoader, own_generator, restore_random_state
from ..builtin.registry import find
from ..builtin.saving import make_trial_folder
from ..builtin.systems import DistillationSystem
from .streams import Stream, merged_draws

WHERE = "objects together"
ADAPTERS = ("lora_layers", "camera_embedding")
PRECISIONS = {"32": None, "32-true": None, "bf16-mixed": torch.bfloat16}
CAMERAS = ("elevation", "azimuth", "camera_distances", "c2w", "mvp_mtx")
"""What a guidance reads of a batch besides the renders; joined over the objects."""
CHECKPOINT_EVERY = 100


@dataclass
class Member:
    """One of the objects: its experiment, and what trains it."""

    config: Any
    folder: Path
    system: Any
    data: Any
    stream: Stream
    batches: Iterator[Any]
    optimizer: torch.optim.Optimizer
    schedule: dict[str, Any] | None
    trained: list[Tensor] = field(default_factory=list)
    adapters: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Own parameters of the guidance, and the stacked ones that they are a slice of."""

    @property
    def last(self) -> Path:
        """The checkpoint that the object goes on from."""
        return self.folder / "ckpts" / "last.ckpt"

    @property
    def dataset(self) -> Any:
        return self.data.train_dataset


class Together:
    """Train several experiments that differ in their prompts and seeds only.

    Parameters
    ----------
    configs
        YAML files, as ``launch`` takes them.
    overrides
        ``key=value`` words of each object; they name its trial folder.
    device
        Where all are.

    Raises
    ------
    InputError
        For systems that cannot share a guidance, or checkpoints of different steps.
    """

    def __init__(
        self, configs: Sequence[Path], overrides: Sequence[Sequence[str]], device: str
    ) -> None:
        self.device = torch.device(device)
        self._kept: list[Any] = []
        with device_scope(self.device):
            self.members = [self._member(configs, words) for words in overrides]
            self.guidance = self._shared_guidance()
        self._stacked = list(self.guidance.parameters())
        self._clip = self.members[0].config.trainer.get("gradient_clip_val")
        self.prompts = TrialPrompts([m.system.prompt_utils for m in self.members])
        for member in self.members:
            self._prepare(member)
        self.step = self._resume()
        for member in self.members:
            self._begin(member)

    @property
    def n_steps(self) -> int:
        """Steps of the whole optimisation."""
        return int(self.members[0].config.trainer.max_steps)

    def train(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Take the steps that are left; write the checkpoints, also when interrupted.

        ``on_step`` hears how many steps are done. What it raises ends the training after the
        step, with checkpoints written.
        """
        every = self.members[0].config.checkpoint.get("every_n_train_steps", CHECKPOINT_EVERY)
        try:
            while self.step < self.n_steps:
                self.training_step()
                if self.step % every == 0 and self.step < self.n_steps:
                    self.save()
                on_step(self.step)
        except KeyboardInterrupt:
            self.save()
            raise
        self.save()

    def training_step(self) -> None:
        """One step of every object."""
        update_if_possible(self.guidance, 0, self.step)
        with torch.autocast(self.device.type, self._autocast, self._autocast is not None):
            batches, outs = zip(*(self._render(member) for member in self.members), strict=True)
            guided = self._guide(batches, outs)
            total = self._total(guided, outs)
        self._zero_gradients()
        total.backward()
        self._hand_out_gradients()
        for member in self.members:
            self._optimise(member)
        self.step += 1
        for member in self.members:
            member.system.set_resume_status(0, self.step)

    def save(self) -> None:
        """Write every object's checkpoint, as a run of its own would name and fill it."""
        for member in self.members:
            member.system._finite.check()
            content: dict[str, Any] = {
                "epoch": 0,
                "global_step": self.step,
                "pytorch-lightning_version": pl.__version__,
                "state_dict": _contiguous(member.system.state_dict()),
                "optimizer_states": [member.optimizer.state_dict()],
                "lr_schedulers": []
                if member.schedule is None
                else [member.schedule["scheduler"].state_dict()],
            }
            with member.stream.drawing():
                member.system.on_save_checkpoint(content)
            with whole_file(member.last) as temporary:
                torch.save(content, temporary)

    def film(self, member: Member) -> None:
        """Render an object's turntable film."""
        from ..builtin.launch import _calm, _trainer

        with device_scope(self.device), _calm(True):
            trainer = _trainer(member.config, member.system, member.folder, self.device, True, [])
            member.data.setup("test")
            trainer.test(member.system, own_generator(member.data.test_dataloader()), verbose=False)

    # Building

    def _member(self, configs: Sequence[Path], words: Sequence[str]) -> Member:
        config = load_config(*configs, cli_args=words)
        folder = make_trial_folder(config.trial_dir)
        dump_config(folder / "configs" / "raw.yaml", compose(*configs, cli_args=words))
        dump_config(folder / "configs" / "parsed.yaml", config)
        resumed = (folder / "ckpts" / "last.ckpt").is_file()
        pl.seed_everything(config.seed, verbose=False)
        data = find(config.data_type)(config.data)
        system = find(config.system_type)(config.system, resumed=resumed)
        system.set_save_dir(folder / "save")
        self._check(config, system)
        self._keep_adapters(system)
        return Member(
            config,
            folder,
            system,
            data,
            Stream(self.device),
            iter(()),
            None,  # type: ignore[arg-type]
            None,
        )

    def _check(self, config: Any, system: Any) -> None:
        trainer = config.trainer
        expected = "eeg-prolificdreamer-system or another that distils with eeg guidance"
        if not isinstance(system, DistillationSystem) or not hasattr(system.guidance, "draw"):
            raise InputError(WHERE, "system_type", config.system_type, expected)
        if getattr(system.guidance, "own_optimizer", None) is not None:
            raise InputError(WHERE, "guidance.lora_optimizer", "one", "none: the system's own")
        self._autocast = PRECISIONS.get(str(trainer.get("precision", "32-true")))
        checks = {
            "system.n_particles": (system.cfg.n_particles, system.cfg.n_particles == 1, "1"),
            "trainer.precision": (
                trainer.get("precision"),
                str(trainer.get("precision", "32-true")) in PRECISIONS,
                " or ".join(PRECISIONS),
            ),
            "trainer.accumulate_grad_batches": (
                trainer.get("accumulate_grad_batches"),
                trainer.get("accumulate_grad_batches", 1) == 1,
                "1",
            ),
        }
        for name, (found, fits, wanted) in checks.items():
            if not fits:
                raise InputError(WHERE, name, found, wanted)

    def _keep_adapters(self, system: Any) -> None:
        """Leave of a system's guidance only what is trained: the pipeline is loaded once more."""
        self._kept.append((type(system.guidance), system.guidance.cfg))
        slot = nn.Module()
        for name in ADAPTERS:
            if hasattr(system.guidance, name):
                slot.add_module(name, getattr(system.guidance, name))
        del system.guidance
        system.guidance = slot

    def _shared_guidance(self) -> Any:
        kind, self._single = self._kept[0]
        settings = {**plain(self.members[0].config.system.guidance), "n_trials": len(self.members)}
        guidance = kind(settings).to(self.device)
        self._draw_alone = guidance.draw
        guidance.draw = self._draw
        stacked = dict(guidance.named_parameters())
        for i, member in enumerate(self.members):
            for name, own in member.system.guidance.named_parameters():
                share = self._share(stacked[name].data, i)
                share.copy_(own.data)
                own.data = share
        return guidance

    def _share(self, stacked: Tensor, i: int) -> Tensor:
        return stacked if len(self.members) == 1 else stacked[i]

    def _prepare(self, member: Member) -> None:
        member.system.to(self.device).train()
        made = member.system.configure_optimizers()
        member.schedule = made.get("lr_scheduler") if isinstance(made, Mapping) else None
        member.optimizer = made["optimizer"] if isinstance(made, Mapping) else made
        member.trained = [p for p in member.system.parameters() if p.requires_grad]
        own = dict(member.system.guidance.named_parameters())
        member.adapters = [(own[n], p) for n, p in self.guidance.named_parameters() if n in own]

    def _resume(self) -> int:
        contents = [
            load_checkpoint(m.last, self.device) if m.last.is_file() else None for m in self.members
        ]
        steps = {0 if content is None else int(content["global_step"]) for content in contents}
        if len(steps) > 1:
            found = ", ".join(str(step) for step in sorted(steps))
            raise InputError(WHERE, "steps of the checkpoints", found, "one step for all")
        for member, content in zip(self.members, contents, strict=True):
            if content is not None:
                self._restore(member, content)
        return steps.pop()

    def _restore(self, member: Member, content: dict[str, Any]) -> None:
        member.system.load_state_dict(content["state_dict"])
        member.optimizer.load_state_dict(content["optimizer_states"][0])
        if member.schedule is not None:
            member.schedule["scheduler"].load_state_dict(content["lr_schedulers"][0])
        with member.stream.drawing():
            restore_random_state(content["random_state"])

    def _begin(self, member: Member) -> None:
        system = member.system
        system.set_resume_status(0, self.step)
        with device_scope(self.device), member.stream.drawing():
            DistillationSystem.on_fit_start(system)
            if hasattr(system, "_write_records"):
                system._write_records()
            member.data.setup("fit")
            loader = StepLoader(member.data.train_dataloader(), self.n_steps, system)
            member.batches = iter(loader)

    # A step

    def _render(self, member: Member) -> tuple[dict[str, Any], dict[str, Any]]:
        with member.stream.drawing():
            batch = _on(next(member.batches), self.device)
            member.system._begin_step(member.dataset)
            return batch, member.system(batch)

    def _guide(self, batches: Sequence[Any], outs: Sequence[Any]) -> dict[str, Any]:
        pictures = [m.system.guided_picture(o) for m, o in zip(self.members, outs, strict=True)]
        cameras = {
            name: torch.cat([batch[name] for batch in batches])
            for name in CAMERAS
            if name in batches[0]
        }
        guided: dict[str, Any] = self.guidance(torch.cat(pictures), self.prompts, **cameras)
        return guided

    def _draw(self, n: int, as_latents: bool = False) -> Any:
        """Draw for each object from its own generators what it would draw alone."""
        alone = copy.copy(self.guidance)
        alone.cfg = self._single
        parts = []
        for member in self.members:
            with member.stream.drawing():
                parts.append(type(alone).draw(alone, n // len(self.members), as_latents))
        return merged_draws(parts)

    def _total(self, guided: Mapping[str, Any], outs: Sequence[Any]) -> Tensor:
        """Sum of the objects' losses; the guidance's own are sums over the objects already."""
        losses = {name: value for name, value in guided.items() if name.startswith("loss_")}
        first = self.members[0].system
        first._check_weights(losses)
        total = weighted(first, losses)
        for member, out in zip(self.members, outs, strict=True):
            own = member.system._regularisation(out)
            total = total + weighted(member.system, own)
            member.system._finite.add(self.step, {**losses, **own})
        return total

    def _zero_gradients(self) -> None:
        for parameter in self._stacked:
            parameter.grad = None
        for member in self.members:
            for parameter in member.trained:
                parameter.grad = None

    def _hand_out_gradients(self) -> None:
        for i, member in enumerate(self.members):
            for own, stacked in member.adapters:
                own.grad = None if stacked.grad is None else self._share(stacked.grad, i)

    def _optimise(self, member: Member) -> None:
        if self._clip:
            groups = member.optimizer.param_groups
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], self._clip)
        with member.stream.drawing():
            member.system.on_before_optimizer_step(member.optimizer)
            member.optimizer.step()
            if member.schedule is not None and member.schedule["interval"] == "step":
                member.schedule["scheduler"].step()
            member.system._end_step(member.dataset)


def weighted(system: Any, losses: Mapping[str, Tensor]) -> Tensor:
    """``sum loss_x C(lambda_x)`` with a system's weights at its present step."""
    total = torch.zeros((), device=system.device)
    for name, value in losses.items():
        total = total + value * float(system.C(system._lambda(name)))
    return total


def _on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _contiguous(state: Mapping[str, Any]) -> dict[str, Any]:
    """Own copies of tensors that are views: a view is saved with all that it is a view of."""
    return {name: value.clone() for name, value in state.items()}
