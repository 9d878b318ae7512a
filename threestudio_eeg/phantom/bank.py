"""Training pictures on one device: many views of every training instance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .categories import CATEGORIES, COLOURS
from .objects import Instance, caption, solids_of
from .pictures import Cameras, over, random_cameras, render, stimulus_cameras, view_word

VIEW_WORDS = ("", "front", "side", "back", "overhead")


@dataclass
class PictureBank:
    """I instances seen from V cameras; the last ``n_stimuli`` views are stimulus views.

    ``rgba`` (I, V, 4, S, S) uint8; ``elevation``, ``azimuth`` (degrees) and ``distance`` (I, V);
    ``category``, ``colour`` (I,) and ``word`` (I, V) are indices into the lists of those names.
    """

    rgba: Tensor
    elevation: Tensor
    azimuth: Tensor
    distance: Tensor
    category: Tensor
    colour: Tensor
    word: Tensor
    n_stimuli: int

    @property
    def n_views(self) -> int:
        return self.rgba.shape[1]

    def pictures(self, instance: Tensor, view: Tensor, background: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [0, 1] on flat backgrounds (B, 3)."""
        return over(self.rgba[instance, view].float() / 255.0, background)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Random instances (n,), views (n,) and pictures (n, 3, S, S) on random backgrounds."""
        instance = self.integers(len(self.rgba), n, generator)
        view = self.integers(self.n_views, n, generator)
        background = torch.rand(n, 3, generator=generator, device=self.rgba.device)
        return instance, view, self.pictures(instance, view, background)

    def integers(self, high: int, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(high, (n,), generator=generator, device=self.rgba.device)

    def stimulus_view(self, n: int, generator: torch.Generator) -> Tensor:
        """Indices (n,) of stimulus views."""
        return self.n_views - 1 - self.integers(self.n_stimuli, n, generator)

    def caption_index(self, instance: Tensor, word: Tensor) -> Tensor:
        """Index into :func:`all_captions` of the instances' captions with view word ``word``."""
        pair = self.category[instance] * len(COLOURS) + self.colour[instance]
        return pair * len(VIEW_WORDS) + word


def all_captions() -> list[str]:
    """Every caption: category, then colour, then view word (the first is no word)."""
    return [
        caption(category, colour, view or None)
        for category in CATEGORIES
        for colour in COLOURS
        for view in VIEW_WORDS
    ]


def make_bank(
    instances: Sequence[Instance],
    *,
    n_random: int,
    n_stimuli: int,
    size: int,
    seed: int,
    device: str | torch.device,
    chunk: int = 32,
) -> PictureBank:
    """Render every instance from ``n_random`` cameras of the training distribution and
    ``n_stimuli`` stimulus cameras, as ``size``² pictures."""
    generator = torch.Generator().manual_seed(seed)
    n_views = n_random + n_stimuli
    cameras = [
        _cat(random_cameras(n_random, generator), stimulus_cameras(n_stimuli, generator))
        for _ in instances
    ]
    pictures = [
        _render_chunk(instances[i : i + chunk], cameras[i : i + chunk], size, device)
        for i in _progress(range(0, len(instances), chunk), "pictures")
    ]
    places = {
        name: torch.stack([getattr(c, name) for c in cameras]).to(device)
        for name in ("elevation", "azimuth", "distance")
    }
    return PictureBank(
        rgba=torch.cat(pictures).view(len(instances), n_views, 4, size, size),
        **places,
        category=torch.tensor([CATEGORIES.index(i.category) for i in instances], device=device),
        colour=torch.tensor([list(COLOURS).index(i.colour) for i in instances], device=device),
        word=torch.tensor([_words(c) for c in cameras], device=device),
        n_stimuli=n_stimuli,
    )


def _words(cameras: Cameras) -> list[int]:
    return [
        VIEW_WORDS.index(view_word(float(elevation), float(azimuth)))
        for elevation, azimuth in zip(cameras.elevation, cameras.azimuth, strict=True)
    ]


def _cat(a: Cameras, b: Cameras) -> Cameras:
    return Cameras(*(torch.cat([getattr(a, name), getattr(b, name)]) for name in vars(a)))


def _render_chunk(
    instances: Sequence[Instance], cameras: Sequence[Cameras], size: int, device: str | torch.device
) -> Tensor:
    solids = solids_of(instances).to(device)
    n_views = len(cameras[0])
    each = torch.arange(len(instances), device=device).repeat_interleave(n_views)
    joined = Cameras(*(torch.cat([getattr(c, name) for c in cameras]) for name in vars(cameras[0])))
    pictures = [
        render(solids.select(part), joined.select(slice(start, start + len(part))).to(device), size)
        for start, part in _chunks(each, 128)
    ]
    return (torch.cat(pictures) * 255).round().to(torch.uint8)


def _chunks(index: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(index), size):
        yield start, index[start : start + size]


def _progress(items: Sequence[int], title: str) -> Iterator[int]:
    from rich.progress import track

    yield from track(items, description=title, transient=True)
