"""Which weights of a U-Net are adapted, and how a pipeline folder with them is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..files import writable_folder, write_json
from ..quiet import quiet_libraries

LORA_TARGETS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
KEYS_VALUES = (".attn2.to_k.", ".attn2.to_v.")


def add_lora(unet: nn.Module, rank: int) -> nn.Module:
    """Low-rank updates of the cross-attention's four maps, by peft; everything else is frozen.

    The update starts at zero (Hu et al., arXiv 2106.09685).

    Raises
    ------
    InputError
        For a rank below 1.
    """
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise InputError("adapter", "rank", rank, "1 or more")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS))
    return get_peft_model(unet, config)  # type: ignore[arg-type]


def free_keys_and_values(unet: nn.Module) -> nn.Module:
    """Train the cross-attention's key and value maps only (Custom Diffusion, arXiv 2212.04488)."""
    unet.requires_grad_(False)
    for name, weight in unet.named_parameters():
        if any(part in f".{name}" for part in KEYS_VALUES):
            weight.requires_grad_(True)
    return unet


def merged(unet: Any) -> nn.Module:
    """The U-Net with LoRA updates added to its weights; any other as it is."""
    return unet.merge_and_unload() if hasattr(unet, "merge_and_unload") else unet


def write_pipeline(base: str | Path, out: str | Path, unet: Any, record: dict[str, Any]) -> Path:
    """A pipeline folder with ``unet`` in place of the base model's, the rest copied.

    With LoRA, the adapter alone is in ``adapter/`` too, in peft's layout. The folder has the
    base's networks' configs, so conditioning made for the base fits it. ``refine.json`` keeps
    ``record``.

    Raises
    ------
    InputError
        When ``out`` is the base folder or cannot be written.
    """
    base, out = Path(base), Path(out)
    if out.resolve() == base.resolve():
        raise InputError(out, "out", "the base pipeline", "another folder")
    writable_folder(out)
    if hasattr(unet, "peft_config"):
        unet.save_pretrained(out / "adapter")
    for entry in sorted(base.iterdir()):
        if entry.is_dir() and entry.name not in ("unet", "adapter"):
            shutil.copytree(entry, out / entry.name, dirs_exist_ok=True)
    if (base / "model_index.json").is_file():
        shutil.copyfile(base / "model_index.json", out / "model_index.json")
    with quiet_libraries():
        network: Any = merged(unet).to("cpu", torch.float32)
        network.save_pretrained(out / "unet")
    shutil.copyfile(base / "unet" / "config.json", out / "unet" / "config.json")
    write_json(out / "refine.json", record)
    return out
