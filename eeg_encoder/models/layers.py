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

    def forward(self, x: Tensor, subject: Tensor | None) -> Tensor:
        """(B, C, T) signals and (B,) subject numbers to (B, filters, T)."""
        mixed = self.shared(x)
        if subject is None or not self.subjects:
            return mixed
        row, known = subject_rows(subject, self.subjects)
        gate = known.to(x)[:, None, None]
        return mixed + gate * torch.bmm(self.own[row + 1].to(x.dtype), x)


class SubjectCorrection(nn.Module):
    """A matrix for each known subject, added to the identity; others pass unchanged.

    Parameters
    ----------
    channels
        C
    subjects
        Numbers of the known subjects.
    """

    def __init__(self, channels: int, subjects: list[int]) -> None:
        super().__init__()
        self.subjects = [int(number) for number in subjects]
        self.own = nn.Parameter(torch.zeros(len(self.subjects), channels, channels))

    def forward(self, x: Tensor, subject: Tensor) -> Tensor:
        """(B, C, T) signals and (B,) subject numbers to (B, C, T)."""
        row, known = subject_rows(subject, self.subjects)
        return x + known.to(x)[:, None, None] * torch.bmm(self.own[row].to(x.dtype), x)


class PositionMixing(nn.Module):
    """Electrodes to virtual channels by attention over their places on the head.

    Each virtual channel j scores a place by a learnt Fourier series, a_j(x, y), and takes the
    softmax-weighted sum of the electrodes. After the spatial attention of Défossez et al.,
    "Decoding speech perception from non-invasive brain recordings", Nature Machine Intelligence
    2023. Places are projected to the unit square by the azimuthal equidistant projection, so the
    weights are defined for any montage.

    Parameters
    ----------
    electrodes
        (C, 3): x right, y front, z up, from the centre of the head; any unit.
    virtual
        Virtual channels.
    harmonics
        K: the series has 2 K^2 terms.
    """

    places: Tensor

    def __init__(self, electrodes: list[list[float]], virtual: int, harmonics: int = 8) -> None:
        super().__init__()
        self.harmonics = harmonics
        places = torch.tensor(electrodes, dtype=torch.float32)
        self.register_buffer("places", places, persistent=False)
        self.series = nn.Parameter(torch.randn(virtual, 2 * harmonics**2) / harmonics)

    def forward(self, x: Tensor, electrodes: Tensor | None = None) -> Tensor:
        """(B, C, T) to (B, virtual, T); ``electrodes`` (C, 3) replaces those of the constructor."""
        places = self.places if electrodes is None else electrodes.to(self.places)
        waves = fourier_places(flat_places(places), self.harmonics)
        weights = (self.series @ waves.T).softmax(dim=1).to(x.dtype)
        return weights @ x


def flat_places(electrodes: Tensor) -> Tensor:
    """Places (C, 3) to the square [0, 1]^2: azimuthal equidistant, vertex in the middle."""
    unit = F.normalize(electrodes, dim=1)
    polar = torch.arccos(unit[:, 2].clamp(-1, 1)) / torch.pi
    angle = torch.atan2(unit[:, 1], unit[:, 0])
    return 0.5 + 0.5 * polar[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def fourier_places(places: Tensor, harmonics: int) -> Tensor:
    """(C, 2) in [0, 1]^2 to (C, 2 K^2): cosines and sines of 2 pi (k x + l y), k, l < K."""
    order = torch.arange(harmonics, device=places.device, dtype=places.dtype)
    phase = order[:, None] * places[:, :1, None] + order * places[:, 1:, None]
    phase = 2 * torch.pi * phase.flatten(1)
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def subject_rows(subject: Tensor, subjects: list[int]) -> tuple[Tensor, Tensor]:
    """Row of each subject number in ``subjects``, and whether it is there (row 0 if not)."""
    match = subject[:, None] == torch.tensor(subjects, device=subject.device)
    return match.float().argmax(1), match.any(1)


class ResidualHead(nn.Module):
    """Linear, a residual GELU layer, LayerNorm, linear: the projector of NICE and ATM.

    Parameters
    ----------
    features, hidden, embedding
        Widths in, between and out.
    dropout
        Inside the residual branch.
    """

    def __init__(self, features: int, hidden: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Linear(features, hidden)
        self.residual = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(hidden)
        self.leave = nn.Linear(hidden, embedding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, embedding)."""
        x = self.enter(x.flatten(1))
        return self.leave(self.norm(x + self.residual(x)))


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


def visible_tokens(tokens: Tensor, hidden: Tensor, count: int | None = None) -> Tensor:
    """(B, n, ...) without the hidden ones (B, n), of which each row has the same number.

    With ``count``, the number of visible tokens, nothing waits for the device.
    """
    if count is None:
        return tokens[~hidden].reshape(len(tokens), -1, *tokens.shape[2:])
    places = visible_first(hidden)[:, :count]
    return torch.take_along_dim(tokens, places.reshape(*places.shape, *[1] * (tokens.ndim - 2)), 1)


def visible_first(hidden: Tensor) -> Tensor:
    """Places of tokens (B, n): the visible ones in order, then the hidden ones in order."""
    return hidden.to(torch.uint8).argsort(dim=1, stable=True)
