"""Camera angles as cross-attention tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = "diffusion_pytorch_model.safetensors"


class ViewEncoder(nn.Module):
    """Turn a camera's place around the object into tokens beside the prompt's.

    Four view words leave a prior free to show a front on two sides; tokens that carry the angle
    itself do not. They are appended on the sequence axis of the U-Net's context, so any U-Net
    with cross-attention can be trained with them and no other network changes.

    Parameters
    ----------
    width
        D, the U-Net's cross-attention width.
    n_tokens
        K, tokens per camera.
    hidden
        Width of the hidden layer.
    n_harmonics
        Harmonics of the azimuth given to the network (1 is ``sin a, cos a``).
    """

    def __init__(self, width: int, n_tokens: int = 2, hidden: int = 256, n_harmonics: int = 3):
        super().__init__()
        self.config = {
            "width": width,
            "n_tokens": n_tokens,
            "hidden": hidden,
            "n_harmonics": n_harmonics,
        }
        self.n_harmonics = n_harmonics
        self.network = nn.Sequential(
            nn.Linear(2 * n_harmonics + 3, hidden), nn.SiLU(), nn.Linear(hidden, n_tokens * width)
        )
        self.norm = nn.LayerNorm(width)
        self.null_tokens = nn.Parameter(torch.randn(n_tokens, width) * 0.02)

    def forward(self, elevation: Tensor, azimuth: Tensor, camera_distances: Tensor) -> Tensor:
        """Tokens (B, K, D) of cameras at ``elevation`` and ``azimuth`` (degrees), each (B,).

        ``camera_distances`` (B,) are in the units of the world, whose objects have radius 0.6.
        """
        weight = self.null_tokens
        elevation, azimuth = (
            angle.to(weight) * (math.pi / 180.0) for angle in (elevation, azimuth)
        )
        orders = torch.arange(1, self.n_harmonics + 1, device=weight.device, dtype=weight.dtype)
        turns = azimuth[:, None] * orders
        place = torch.stack(
            [elevation.sin(), elevation.cos(), camera_distances.to(weight) - 2.0], dim=1
        )
        features = torch.cat([turns.sin(), turns.cos(), place], dim=1)
        tokens = self.network(features).view(len(features), *self.null_tokens.shape)
        return self.norm(tokens)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write ``config.json`` and the weights, in diffusers' naming."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        state = {name: value.to(dtype).contiguous() for name, value in self.state_dict().items()}
        save_file(state, target / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ViewEncoder:
        """Read what :meth:`save_pretrained` wrote, in float32."""
        source = Path(folder)
        encoder = cls(**json.loads((source / "config.json").read_text()))
        state = {name: value.float() for name, value in load_file(source / WEIGHTS).items()}
        encoder.load_state_dict(state)
        return encoder
