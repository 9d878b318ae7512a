"""Which objects there are: instances, their colours and captions, and the splits between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .categories import CATEGORIES, COLOURS, N_PARAMETERS, build
from .solids import Solids, stack

SPLITS = ("train", "val", "test")
HELD_OUT_PAIRS = {
    (category, tuple(COLOURS)[(7 * i + 3) % len(COLOURS)]) for i, category in enumerate(CATEGORIES)
}


@dataclass(frozen=True)
class Instance:
    """One object. ``number`` is its place in its split and category; ``parameters`` in [0, 1]."""

    category: str
    colour: str
    parameters: tuple[float, ...]
    split: str
    number: int

    @property
    def stimulus(self) -> str:
        """Picture name in ImageNet's form, ``<wnid>_<number>``; the number tells the split."""
        return f"{wnid(self.category)}_{SPLITS.index(self.split) * 10000 + self.number}"

    @property
    def caption(self) -> str:
        return caption(self.category, self.colour)


def wnid(category: str) -> str:
    """A WordNet-like id of a category; the range ``n99…`` is not used by WordNet."""
    return f"n{99000000 + CATEGORIES.index(category):08d}"


def category_of(name: str) -> str:
    """The category of a WordNet-like id, or of a stimulus that starts with one."""
    return CATEGORIES[int(name.split("_")[0][1:]) - 99000000]


def caption(category: str, colour: str | None = None, view: str | None = None) -> str:
    """A caption in threestudio's view wording: ``a red mug, front view``."""
    words = " ".join(word for word in (colour, category) if word)
    article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}" + (f", {view} view" if view else "")


def make_instances(split: str, per_category: int, seed: int) -> list[Instance]:
    """``per_category`` instances of every category, in the order of the categories.

    Parameters are drawn from [0, 1] anew for every split, so no instance is shared; colours are
    those that are not held out with the category.
    """
    generator = np.random.default_rng([seed, SPLITS.index(split)])
    return [
        Instance(
            category,
            _colour(category, generator),
            tuple(float(value) for value in generator.random(N_PARAMETERS)),
            split,
            number,
        )
        for category in CATEGORIES
        for number in range(per_category)
    ]


def held_out_instances(seed: int) -> list[Instance]:
    """One test instance of every category in the colour it never had in training."""
    generator = np.random.default_rng([seed, len(SPLITS)])
    return [
        Instance(
            category,
            colour,
            tuple(float(value) for value in generator.random(N_PARAMETERS)),
            "test",
            9000 + i,
        )
        for i, (category, colour) in enumerate(sorted(HELD_OUT_PAIRS))
    ]


def solids_of(instances: Sequence[Instance]) -> Solids:
    """The instances' shapes as one batch."""
    return stack([build(i.category, i.parameters, i.colour) for i in instances])


def _colour(category: str, generator: np.random.Generator) -> str:
    allowed = [colour for colour in COLOURS if (category, colour) not in HELD_OUT_PAIRS]
    return allowed[int(generator.integers(len(allowed)))]
