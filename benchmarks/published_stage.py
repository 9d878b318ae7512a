"""The first stage as published, from a checkout of its authors' code; nothing of it is kept here.

The checkout needs ``sc_mbm/mae_for_eeg.py``, ``utils.py`` and ``trainer.py`` and ``config.py``. Its
modules import ``timm`` for one class and a picture model for none that this stage uses; where
``timm`` is absent, :class:`Block` stands in, with fused attention as in timm 0.9 and later.
"""

from __future__ import annotations

import contextlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Modules = dict[str, types.ModuleType]
NAMES = {
    "patch_embed.proj": "encoder.embed",
    "blocks": "encoder.blocks",
    "norm": "encoder.norm",
    "decoder_embed": "decoder.enter",
    "decoder_blocks": "decoder.blocks",
    "decoder_norm": "decoder.norm",
    "decoder_pred": "decoder.leave",
}
IN_BLOCK = {
    "norm1": "norm_1", "norm2": "norm_2", "attn.qkv": "qkv", "attn.proj": "out",
    "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3",
}  # fmt: skip


class Attention(nn.Module):
    """Self-attention with names of weights as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to (B, N, d)."""
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(found.transpose(1, 2).reshape(b, n, d))


class Perceptron(nn.Module):
    """Two linear layers with names of weights as in timm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to (B, N, d)."""
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with names of arguments and weights as in timm."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, qkv_bias: bool = True,
        norm_layer: Any = nn.LayerNorm,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1, self.norm2 = norm_layer(dim), norm_layer(dim)
        self.attn, self.mlp = Attention(dim, num_heads), Perceptron(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to (B, N, d)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Published:
    """The model and the training loop of a checkout.

    Parameters
    ----------
    checkout
        Folder that holds ``sc_mbm``.
    sizes
        In place of the published ones, for tests: ``channels``, ``samples``, ``patch``, ``width``,
        ``depth``, ``heads``, ``decoder_width``, ``decoder_depth``, ``decoder_heads``.
    """

    def __init__(self, checkout: Path, device: str, **sizes: int) -> None:
        modules = _modules(checkout)
        self.trainer = modules["sc_mbm.trainer"]
        self.device = device
        self.config = modules["config"].Config_MBM_EEG_contrast()  # type: ignore[attr-defined]
        self.config.do_self_contrast = self.config.do_cross_contrast = True
        self.config.lr = 1e-5
        named = {"channels": "in_chans", "samples": "time_len", "patch": "patch_size",
                 "width": "embed_dim", "heads": "num_heads", "decoder_width": "decoder_embed_dim",
                 "decoder_heads": "decoder_num_heads"}  # fmt: skip
        settings = {named.get(name, name): value for name, value in sizes.items()}
        kind = modules["sc_mbm.mae_for_eeg"].MAEforEEGContrast  # type: ignore[attr-defined]
        self.model = kind(
            mlp_ratio=1.0,
            do_self_contrast=True,
            self_contrast_loss_weight=1.0,
            do_cross_contrast=True,
            cross_contrast_loss_weight=0.5,
            negative_mode=self.config.negative_mode,
            **settings,
        ).to(device)
        self.timm = "stand-in" if modules["stand-in"].used else "timm"  # type: ignore[attr-defined]

    def parameters(self) -> int:
        """Trained weights."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def take_weights(self, network: nn.Module) -> None:
        """The weights of our masked autoencoder."""
        ours = network.state_dict()
        found = {}
        for name in self.model.state_dict():
            if name in ("cls_token", "mask_token"):
                part = "encoder.cls" if name == "cls_token" else "decoder.mask_token"
                found[name] = ours[part]
            elif "pos_embed" not in name:
                found[name] = ours[_our_name(name)]
        missing, unexpected = self.model.load_state_dict(found, strict=False)
        assert not unexpected, unexpected
        assert all("pos_embed" in name for name in missing), missing

    def loss_of(self, first: Tensor, second: Tensor, signals: Tensor) -> Tensor:
        """Its loss (the whole of ``forward``) of two given reconstructions (B, C, T)."""
        views = iter([first, second])
        patch = self.model.patch_embed.patch_size

        def patches(view: Tensor) -> Tensor:
            b, c, t = view.shape
            return view.transpose(1, 2).reshape(b, t // patch, patch * c)

        with _instead(self.model, "forward_encoder", lambda x, ratio: (next(views), None, None)), \
                _instead(self.model, "forward_decoder", lambda view, _: patches(view)):  # fmt: skip
            return self.model(signals)[0].squeeze()

    def whole_loss(self, signals: Tensor, hidden: Tensor) -> Tensor:
        """Its loss under given masks (2, B, n) bool."""
        masks = iter(hidden)
        with _instead(self.model, "random_masking", lambda x, ratio: _masked(x, next(masks))):
            return self.model(signals)[0].squeeze()

    def training(self) -> Callable[[Tensor], float]:
        """Its training loop, one batch at a time: half precision with scaling, as published."""
        scaler = self.trainer.NativeScalerWithGradNormCount()  # type: ignore[attr-defined]
        decayed = [p for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [
            {"params": plain, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": self.config.weight_decay},
        ]
        adam = torch.optim.AdamW(groups, lr=self.config.lr, betas=(0.9, 0.95))
        loop = self.trainer.train_one_epoch_contrast  # type: ignore[attr-defined]
        late = self.config.num_epoch // 2

        def step(signals: Tensor) -> float:
            with contextlib.redirect_stdout(io.StringIO()):
                return float(
                    loop(
                        self.model, [{"eeg": signals}], adam, self.device, late,
                        scaler, None, self.config, 0.0, self.model,
                    )
                )  # fmt: skip

        return step


def _our_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        if name.startswith(theirs + "."):
            rest = name[len(theirs) + 1 :]
            if "blocks" in theirs:
                number, inner = rest.split(".", 1)
                part, kind = inner.rsplit(".", 1)
                return f"{ours}.{number}.{IN_BLOCK[part]}.{kind}"
            return f"{ours}.{rest}"
    raise KeyError(name)


def _masked(tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Visible tokens, the mask, and where each place is among visible, then hidden ones."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    visible = int((~hidden[0]).sum())
    kept = order[:, :visible, None].expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, kept), hidden.float(), order.argsort(dim=1)


@contextlib.contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


def _modules(checkout: Path) -> Modules:
    """The checkout's modules, imported with stand-ins for what is absent."""
    if not (checkout / "sc_mbm" / "mae_for_eeg.py").is_file():
        raise SystemExit(f"{checkout}: no sc_mbm/mae_for_eeg.py; expected a checkout's root")
    note = types.ModuleType("stand-in")
    note.used = False  # type: ignore[attr-defined]
    picture = types.ModuleType("sc_mbm.mae_for_image")
    picture.ViTMAELayer = object  # type: ignore[attr-defined]
    sys.modules["sc_mbm.mae_for_image"] = picture
    try:
        from timm.models.vision_transformer import Block as _  # noqa: F401
    except ImportError:
        note.used = True  # type: ignore[attr-defined]
        names = ("timm", "timm.models", "timm.models.vision_transformer")
        for name in names:
            sys.modules[name] = types.ModuleType(name)
        sys.modules[names[-1]].Block = Block  # type: ignore[attr-defined]
    sys.path.insert(0, str(checkout))
    try:
        import importlib

        wanted = ("config", "sc_mbm.mae_for_eeg", "sc_mbm.trainer")
        return {name: importlib.import_module(name) for name in wanted} | {"stand-in": note}
    finally:
        sys.path.remove(str(checkout))
