"""Occupancy grid: which cells of a box, or of nested boxes, hold density.

Buffers have nerfacc's names and shapes (R. Li et al., NerfAcc, ICCV 2023, ``OccGridEstimator``), so
that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PointFunction = Callable[[Tensor], Tensor]
MARGIN = 0.01
"""Of the box around the occupied cells, in cells: more than what rounding moves."""


class OccupancyGrid(nn.Module):
    """Which cells hold density: an exponential moving maximum, thresholded.

    Parameters
    ----------
    box
        Corners of the innermost box (2, 3).
    resolution
        Cells along a side.
    levels
        Number of nested boxes; each is twice as wide as the one before, about the same centre. A
        point belongs to the smallest box around it.

    Attributes
    ----------
    occs
        Moving maximum of the opacity of one step, (levels * resolution ** 3,).
    binaries
        Occupied or not, (levels, resolution, resolution, resolution).
    """

    resolution: Tensor
    aabbs: Tensor
    occs: Tensor
    binaries: Tensor

    def __init__(self, box: Tensor, resolution: int = 32, levels: int = 1) -> None:
        super().__init__()
        self.side, self.levels = resolution, levels
        centre, half = box.float().mean(0), (box[1] - box[0]).float() / 2
        boxes = [torch.cat((centre - half * 2**k, centre + half * 2**k)) for k in range(levels)]
        boxes[0] = box.reshape(6).float()
        self.register_buffer("resolution", torch.tensor([resolution] * 3, dtype=torch.int32))
        self.register_buffer("aabbs", torch.stack(boxes))
        self.register_buffer("occs", torch.zeros(levels * resolution**3))
        binaries = torch.zeros((levels,) + (resolution,) * 3, dtype=torch.bool)
        self.register_buffer("binaries", binaries)

    @property
    def box(self) -> Tensor:
        """Corners of the innermost box (2, 3)."""
        return self.aabbs[0].view(2, 3)

    @property
    def outer_box(self) -> Tensor:
        """Corners of the outermost box (2, 3)."""
        return self.aabbs[-1].view(2, 3)

    def occupied_box(self) -> Tensor:
        """Corners of a box around all occupied cells, a little wider: (2, 3).

        The outermost box where there are several.
        """
        if self.levels > 1:
            return self.outer_box
        low, high = self.box
        ends = []
        for axis in range(3):
            others = [other for other in range(3) if other != axis]
            line = self.binaries[0].any(dim=others).int()
            first, last = line.argmax(), self.side - line.flip(0).argmax()
            ends.append(torch.stack((first - MARGIN, last + MARGIN)).to(low))
        box = low + torch.stack(ends, dim=1) / self.side * (high - low)
        return torch.maximum(torch.minimum(box, high), low)

    def fill(self) -> None:
        """Declare every cell occupied."""
        self.occs.fill_(1)
        self.binaries.fill_(True)

    def occupied(self, points: Tensor) -> Tensor:
        """Whether each point (N, 3) lies in an occupied cell, (N,); outside the boxes, no."""
        low, high = self.box
        cell = (points - low) * (self.side / (high - low))
        inside = ((cell >= 0) & (cell <= self.side)).all(-1)
        flat = torch.zeros(len(points), dtype=torch.long, device=points.device)
        if self.levels > 1:
            level = self._level_of(cell)
            inside = level < self.levels
            level = level.clamp(max=self.levels - 1)
            middle = self.side / 2
            cell = (cell - middle) / torch.exp2(level.to(cell.dtype))[:, None] + middle
            flat = level * self.side**3
        index = cell.long().clamp_(0, self.side - 1)
        flat = flat + (index[:, 0] * self.side + index[:, 1]) * self.side + index[:, 2]
        return self.binaries.view(-1).index_select(0, flat) & inside

    def _level_of(self, cell: Tensor) -> Tensor:
        """Number of the smallest box around each point, ``levels`` where there is none: (N,)."""
        distance = (cell - self.side / 2).abs().amax(-1)
        reach = [self.side / 2 * 2**k for k in range(self.levels)]
        return torch.stack([distance > r for r in reach]).sum(0)

    @torch.no_grad()
    def update(
        self,
        global_step: int,
        opacity: PointFunction,
        *,
        threshold: float = 0.01,
        decay: float = 0.95,
        warmup_steps: int = 256,
        every: int = 16,
    ) -> None:
        """Every ``every`` steps, look again: at all cells during warm-up, then at a sample.

        The sample is a quarter of a box's cells drawn uniformly, and the occupied ones (at most
        another quarter, drawn). A cell is occupied when its value exceeds the mean, or
        ``threshold`` where that is lower.

        Parameters
        ----------
        opacity
            Maps points (N, 3) to the density times the step length, (N,).
        """
        if global_step % every:
            return
        for level in range(self.levels):
            warm = global_step < warmup_steps
            cells = self._all_cells() if warm else self._some_cells(level)
            low, high = self.aabbs[level].view(2, 3)
            place = self._coordinates(cells) + torch.rand(len(cells), 3, device=cells.device)
            found = opacity(low + place / self.side * (high - low)).view(-1).to(self.occs.dtype)
            rows = cells + level * self.side**3
            self.occs[rows] = torch.maximum(self.occs[rows] * decay, found)
        self.binaries.copy_(
            (self.occs > self.occs.mean().clamp(max=threshold)).view_as(self.binaries)
        )

    def _all_cells(self) -> Tensor:
        return torch.arange(self.side**3, device=self.occs.device)

    def _some_cells(self, level: int) -> Tensor:
        count = self.side**3 // 4
        uniform = torch.randint(self.side**3, (count,), device=self.occs.device)
        occupied = self.binaries[level].view(-1).nonzero().view(-1)
        if len(occupied) > count:
            occupied = occupied[torch.randint(len(occupied), (count,), device=occupied.device)]
        return torch.cat((uniform, occupied)).unique()

    def _coordinates(self, cells: Tensor) -> Tensor:
        side = self.side
        planes = (cells // side**2, cells // side % side, cells % side)
        return torch.stack(planes, dim=-1).float()
