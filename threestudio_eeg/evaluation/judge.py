"""An independent judge: what object, colour and side does a picture show?

Trained on the phantom's pictures for judging only; neither the prior nor the encoder sees it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..phantom.categories import CATEGORIES, COLOURS
from ..phantom.pictures import SIDES, side_index
from ..phantom.training import fit

HEADS = {"category": len(CATEGORIES), "colour": len(COLOURS), "side": len(SIDES)}


def shipped_judge() -> Path:
    """Folder of the judge that ships with the package."""
    return Path(__file__).parent / "judge"


class Judge(nn.Module):
    """Convolutional classifier of 64x64 pictures with a head for category, colour and side."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 6 * width]
        blocks = [
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
                nn.Conv2d(b, b, 3, stride=2, padding=1),
                nn.GroupNorm(8, b),
                nn.SiLU(),
            )
            for a, b in zip(channels[:-1], channels[1:], strict=True)
        ]
        self.features = nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(0.2))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(channels[-1] * 16, n) for name, n in HEADS.items()}
        )

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """Logits by head, (B, n), of pictures (B, 3, H, W) in [0, 1]."""
        if rgb.shape[-2:] != (64, 64):
            rgb = F.interpolate(rgb, (64, 64), mode="bilinear", antialias=True, align_corners=False)
        features = self.features(rgb * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def probabilities(self, rgb: Tensor) -> dict[str, Tensor]:
        """Probabilities by head, (B, n), of pictures (B, 3, H, W) in [0, 1]."""
        return {name: logits.softmax(-1) for name, logits in self(rgb).items()}

    def save_pretrained(self, folder: Path) -> None:
        """Write the weights in half precision, and what the judge scored when it was made."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path | None = None, device: str = "cpu") -> Judge:
        """The shipped judge, or the one in ``folder``, frozen."""
        judge = cls()
        state = load_file((folder or shipped_judge()) / "model.safetensors")
        judge.load_state_dict({name: value.float() for name, value in state.items()})
        return judge.to(device).eval().requires_grad_(False)


def train_judge(bank, *, steps: int, batch: int, seed: int, log) -> Judge:
    """Train on the bank's random views under blur, noise, shift, scale and brightness changes."""
    device = bank.rgba.device
    judge = Judge().to(device)
    generator = torch.Generator(device).manual_seed(seed)

    def loss_of(step: int) -> Tensor:
        instance, view, rgb = bank.draw(batch, generator)
        logits = judge(_disturb(rgb, generator))
        truth = _truth(bank, instance, view)
        losses = [F.cross_entropy(logits[name].float(), truth[name]) for name in HEADS]
        return torch.stack(losses).sum()

    fit("judge", [judge], loss_of, steps=steps, learning_rate=1e-3, average=0.998, log=log)
    return judge.eval().requires_grad_(False)


@torch.no_grad()
def judge_accuracy(judge: Judge, bank, *, seed: int, n: int = 4096) -> dict[str, float]:
    """Share of undisturbed pictures of ``bank`` named right, by head."""
    generator = torch.Generator(bank.rgba.device).manual_seed(seed)
    instance, view, rgb = bank.draw(n, generator)
    logits, truth = judge(rgb), _truth(bank, instance, view)
    return {name: float((logits[name].argmax(-1) == truth[name]).float().mean()) for name in HEADS}


def _truth(bank, instance: Tensor, view: Tensor) -> dict[str, Tensor]:
    """Right answers (B,) by head."""
    return {
        "category": bank.category[instance],
        "colour": bank.colour[instance],
        "side": side_index(bank.azimuth[instance, view]),
    }


def write_card(folder: Path, figures: dict) -> None:
    """Keep beside the weights what they scored."""
    (folder / "card.json").write_text(json.dumps(figures, indent=2) + "\n")


def _disturb(rgb: Tensor, generator: torch.Generator) -> Tensor:
    n, device = len(rgb), rgb.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator, device=device)

    scale, shift = uniform(0.8, 1.2), uniform(-0.12, 0.12, 2)
    affine = torch.zeros(n, 2, 3, device=device)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, :, 2] = shift
    grid = F.affine_grid(affine, list(rgb.shape), align_corners=False)
    rgb = F.grid_sample(rgb, grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
    softer = F.avg_pool2d(soft, 3, stride=1, padding=1, count_include_pad=False)
    choice = uniform(0, 1, 1, 1, 1)
    rgb = torch.where(choice < 0.5, rgb, torch.where(choice < 0.8, soft, softer))
    rgb = rgb * uniform(0.75, 1.1, 1, 1, 1)
    noise = torch.randn(rgb.shape, generator=generator, device=device)
    return (rgb + noise * uniform(0.0, 0.06, 1, 1, 1)).clamp(0, 1)
