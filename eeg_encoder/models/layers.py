"""Parts that encoders share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Pre-norm transformer block: attention and a GELU MLP, each with a residual. (B, N, d)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) to (B, N, d)."""
        b, n, d = x.shape
        qkv = self.qkv(self.norm_1(x)).reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.drop(self.out(attended.transpose(1, 2).reshape(b, n, d)))
        return x + self.drop(self.mlp(self.norm_2(x)))


class SubjectMixing(nn.Module):
    """Spatial filters with a correction for each known subject; others get the shared filters.

    After the subject layer of Défossez et al., "Decoding speech perception from non-invasive brain
    recordings", Nature Machine Intelligence 2023.

    Parameters
    ----------
    channels, filters
        Electrodes in, virtual channels out.
    subjects
        Numbers of the known subjects; empty for shared filters only.
    """

    def __init__(self, channels: int, filters: int, subjects: list[int]) -> None:
        super().__init__()
        self.subjects = [int(number) for number in subjects]
        self.shared = nn.Conv1d(channels, filters, 1)
        self.own = nn.Parameter(torch.zeros(len(self.subjects) + 1, filters, channels))

    def forward(self, x: Tensor, subject: Tensor) -> Tensor:
        """(B, C, T) signals and (B,) subject numbers to (B, filters, T)."""
        mixed = self.shared(x)
        if not self.subjects:
            return mixed
        known = torch.tensor(self.subjects, device=subject.device)
        match = subject[:, None] == known
        row = torch.where(match.any(1), match.float().argmax(1) + 1, 0)
        gate = (row > 0).to(x)[:, None, None]
        return mixed + gate * torch.bmm(self.own[row].to(x.dtype), x)


def sincos_positions(n: int, width: int) -> Tensor:
    """Fixed positions (n, width): sines then cosines, base 10000."""
    frequency = 10000.0 ** (-torch.arange(width // 2) / (width / 2))
    angle = torch.arange(n)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def random_mask(
    batch: int, n: int, ratio: float, *, device: torch.device | str, generator=None
) -> Tensor:
    """Which tokens are hidden (batch, n) bool; exactly ``n - int(n * (1 - ratio))`` in each row."""
    kept = int(n * (1 - ratio))
    noise = torch.rand(batch, n, device=device, generator=generator)
    rank = noise.argsort(dim=1).argsort(dim=1)
    return rank >= kept
