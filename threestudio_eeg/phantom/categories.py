"""Twenty categories of everyday objects, each a function of shape parameters and a colour.

Frame: z up, the defined front at +x, so +y is on the right in the front view. A category has four
shape parameters in [0, 1] and one named colour for its main parts; the other parts keep colours of
their own. ``ASYMMETRIC`` lists the categories that look different from front, side and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from .solids import BOX, CONE, ELLIPSOID, PRISM, TORUS, Part, fit, towards

Vector = tuple[float, float, float]

COLOURS: dict[str, Vector] = {
    "red": (0.86, 0.10, 0.10),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.96, 0.87, 0.16),
    "green": (0.13, 0.62, 0.20),
    "blue": (0.12, 0.27, 0.85),
    "purple": (0.50, 0.15, 0.68),
    "pink": (0.98, 0.55, 0.72),
    "brown": (0.44, 0.25, 0.11),
    "white": (0.96, 0.96, 0.96),
    "gray": (0.52, 0.53, 0.55),
}
DARK, METAL, WOOD = (0.09, 0.09, 0.11), (0.70, 0.73, 0.77), (0.72, 0.52, 0.30)
CREAM, GLASS, TERRACOTTA = (0.97, 0.93, 0.82), (0.55, 0.80, 0.92), (0.72, 0.36, 0.22)
N_PARAMETERS = 4


def box(centre: Vector, half: Vector, colour: Vector, *, rounding: float = 0.02, **more) -> Part:
    return Part(BOX, centre, (*half, min(rounding, 0.9 * min(half))), colour, **more)


def ellipsoid(centre: Vector, radii: Vector, colour: Vector, **more) -> Part:
    return Part(ELLIPSOID, centre, radii, colour, **more)


def cone(centre: Vector, below: float, above: float, half: float, colour: Vector, **more) -> Part:
    return Part(CONE, centre, (below, above, half), colour, **more)


def ring(centre: Vector, radius: float, tube: float, colour: Vector, **more) -> Part:
    return Part(TORUS, centre, (radius, tube), colour, **more)


def prism(centre: Vector, width: float, height: float, length: float, colour: Vector, **more):
    return Part(PRISM, centre, (width, height, length), colour, **more)


def rod(start: Vector, end: Vector, below: float, above: float, colour: Vector, **more) -> Part:
    """A cone from ``start`` (radius ``below``) to ``end`` (radius ``above``)."""
    a, b = torch.tensor(start), torch.tensor(end)
    middle = tuple(((a + b) / 2).tolist())
    half = float((b - a).norm()) / 2
    return cone(middle, below, above, half, colour, rotation=towards((b - a).tolist()), **more)


def between(u: float, low: float, high: float) -> float:
    return low + (high - low) * u


def mug(u: Sequence[float], colour: Vector) -> list[Part]:
    height, radius = between(u[0], 0.34, 0.52), between(u[1], 0.30, 0.38)
    base, loop = radius * between(u[2], 0.78, 1.0), between(u[3], 0.17, 0.23)
    return [
        ring((0, radius + 0.04, 0.02), loop, 0.062, colour, rotation=towards((1, 0, 0))),
        cone((0, 0, 0), base, radius, height, colour),
        cone((0, 0, 0.1), base - 0.05, radius - 0.06, height, CREAM, cut=True),
    ]


def chair(u: Sequence[float], colour: Vector) -> list[Part]:
    leg, back = between(u[0], 0.28, 0.42), between(u[1], 0.26, 0.44)
    half, slant = between(u[2], 0.26, 0.34), between(u[3], 0.0, 0.12)
    legs = [
        rod((x, y, 0), (0.92 * x, 0.92 * y, 2 * leg), 0.045, 0.05, WOOD)
        for x in (-half + 0.04, half - 0.04)
        for y in (-half + 0.04, half - 0.04)
    ]
    seat = 2 * leg
    tilt = towards((-slant, 0, 1))
    return [
        *legs,
        box((0, 0, seat + 0.04), (half, half, 0.06), colour),
        box(
            (-half + 0.05 - slant * back, 0, seat + back + 0.06),
            (0.05, half, back),
            colour,
            rotation=tilt,
        ),
    ]


def table(u: Sequence[float], colour: Vector) -> list[Part]:
    length, width = between(u[0], 0.50, 0.66), between(u[1], 0.36, 0.50)
    leg, thick = between(u[2], 0.24, 0.40), between(u[3], 0.04, 0.07)
    legs = [
        rod((x, y, 0), (x, y, 2 * leg), 0.04, 0.055, WOOD)
        for x in (-width + 0.08, width - 0.08)
        for y in (-length + 0.08, length - 0.08)
    ]
    return [*legs, box((0, 0, 2 * leg + thick), (width, length, thick), colour)]


def lamp(u: Sequence[float], colour: Vector) -> list[Part]:
    pole, shade = between(u[0], 0.30, 0.46), between(u[1], 0.30, 0.42)
    top, half = shade * between(u[2], 0.45, 0.75), between(u[3], 0.18, 0.26)
    head = 2 * pole + half
    return [
        cone((0, 0, 0.03), 0.26, 0.22, 0.04, DARK),
        cone((0, 0, pole), 0.055, 0.055, pole, METAL),
        cone((0, 0, head), shade, top, half, colour),
    ]


def mushroom(u: Sequence[float], colour: Vector) -> list[Part]:
    stem, cap = between(u[0], 0.24, 0.36), between(u[1], 0.40, 0.54)
    dome, thick = between(u[2], 0.30, 0.44), between(u[3], 0.12, 0.18)
    top = 2 * stem
    dots = [(0.62, 0.0), (0.62, 2.1), (0.62, 4.2), (0.05, 0.0)]
    spots = [
        ellipsoid(
            (
                cap * math.sin(tilt) * math.cos(turn),
                cap * math.sin(tilt) * math.sin(turn),
                top + dome * math.cos(tilt),
            ),
            (0.085, 0.085, 0.07),
            CREAM,
        )
        for tilt, turn in dots
    ]
    return [
        ellipsoid((0, 0, top), (cap, cap, dome), colour),
        box((0, 0, top - 0.5), (0.8, 0.8, 0.5), CREAM, cut=True),
        cone((0, 0, stem), thick * 1.25, thick, stem + 0.03, CREAM),
        *spots,
    ]


def rocket(u: Sequence[float], colour: Vector) -> list[Part]:
    body, radius = between(u[0], 0.36, 0.54), between(u[1], 0.17, 0.24)
    nose, fin = between(u[2], 0.16, 0.26), between(u[3], 0.14, 0.22)
    fins = [
        box(
            ((radius + fin / 2) * math.cos(turn), (radius + fin / 2) * math.sin(turn), -body + 0.1),
            (fin, 0.03, 0.16),
            DARK,
            rotation=_yaw(turn),
        )
        for turn in (0.0, math.pi / 2, math.pi, 3 * math.pi / 2)
    ]
    return [
        *fins,
        cone((0, 0, 0), radius, radius, body, colour),
        cone((0, 0, body + nose), radius, 0.02, nose, METAL),
        ellipsoid((radius - 0.01, 0, body * 0.4), (0.05, 0.1, 0.1), GLASS),
        cone((0, 0, -body - 0.06), radius * 0.9, radius * 0.55, 0.07, METAL),
    ]


def hammer(u: Sequence[float], colour: Vector) -> list[Part]:
    handle, grip = between(u[0], 0.40, 0.54), between(u[1], 0.07, 0.09)
    head, face = between(u[2], 0.24, 0.32), between(u[3], 0.15, 0.19)
    top = 2 * handle
    return [
        rod((0, 0, 0), (0, 0, top), grip, grip * 0.8, WOOD),
        rod((-0.05, 0, top), (head, 0, top), 0.11, 0.11, colour),
        rod((head - 0.02, 0, top), (head + 0.12, 0, top), face, face, colour),
        rod((0.0, 0, top), (-head - 0.1, 0.08, top - 0.06), 0.1, 0.035, colour),
        rod((0.0, 0, top), (-head - 0.1, -0.08, top - 0.06), 0.1, 0.035, colour),
    ]


def car(u: Sequence[float], colour: Vector) -> list[Part]:
    length, width = between(u[0], 0.54, 0.68), between(u[1], 0.25, 0.31)
    cabin, wheel = between(u[2], 0.11, 0.17), between(u[3], 0.12, 0.16)
    floor = wheel + 0.12
    wheels = [
        cone((x, y, wheel), wheel, wheel, 0.06, DARK, rotation=towards((0, 1, 0)))
        for x in (-0.58 * length, 0.58 * length)
        for y in (-width, width)
    ]
    lights = [
        ellipsoid((x, y, floor + 0.03), (0.04, 0.06, 0.05), shade)
        for x, shade in ((length, (1.0, 0.95, 0.6)), (-length, (0.75, 0.02, 0.05)))
        for y in (-0.65 * width, 0.65 * width)
    ]
    return [
        box((0, 0, floor), (length, width, 0.12), colour, rounding=0.06),
        box((-0.12, 0, floor + 0.1 + cabin), (0.5 * length, 0.85 * width, cabin), colour),
        box(
            (-0.12 + 0.5 * length, 0, floor + 0.11 + cabin),
            (0.03, 0.72 * width, 0.72 * cabin),
            GLASS,
        ),
        box(
            (-0.12, 0, floor + 0.11 + cabin),
            (0.38 * length, 0.85 * width + 0.015, 0.6 * cabin),
            GLASS,
        ),
        *wheels,
        *lights,
    ]


def airplane(u: Sequence[float], colour: Vector) -> list[Part]:
    length, radius = between(u[0], 0.50, 0.62), between(u[1], 0.14, 0.19)
    span, sweep = between(u[2], 0.40, 0.54), between(u[3], 0.0, 0.22)
    wings = [
        box(
            (0.02 - sweep / 2, side * (span / 2 + 0.04), 0),
            (0.16, span / 2 + 0.08, 0.04),
            METAL,
            rotation=_yaw(side * sweep),
        )
        for side in (-1, 1)
    ]
    return [
        ellipsoid((0, 0, 0), (length, radius, radius * 1.1), colour),
        *wings,
        box((-0.82 * length, 0, 0.02), (0.1, 0.26, 0.035), METAL),
        box((-0.86 * length, 0, 0.17), (0.11, 0.04, 0.19), colour, rotation=towards((-0.4, 0, 1))),
        ellipsoid((0.62 * length, 0, 0.72 * radius), (0.12, 0.09, 0.08), GLASS),
    ]


def teapot(u: Sequence[float], colour: Vector) -> list[Part]:
    width, height = between(u[0], 0.34, 0.42), between(u[1], 0.26, 0.36)
    spout, loop = between(u[2], 0.18, 0.28), between(u[3], 0.15, 0.20)
    return [
        ring((0, -width - 0.02, 0.02), loop, 0.05, colour, rotation=towards((1, 0, 0))),
        ellipsoid((0, 0, 0), (width, width, height), colour),
        rod((0, width - 0.12, -0.08), (0, width + spout, 0.2), 0.12, 0.055, colour),
        cone((0, 0, height - 0.01), 0.17, 0.13, 0.035, DARK),
        ellipsoid((0, 0, height + 0.07), (0.06, 0.06, 0.06), DARK),
        cone((0, 0, -height + 0.03), 0.2, 0.2, 0.04, DARK),
    ]


def sailboat(u: Sequence[float], colour: Vector) -> list[Part]:
    length, beam = between(u[0], 0.46, 0.58), between(u[1], 0.17, 0.24)
    mast, sail = between(u[2], 0.40, 0.54), between(u[3], 0.26, 0.38)
    quarter = sail / 2
    return [
        ellipsoid((0, 0, 0), (length, beam, 0.26), colour),
        box((0, 0, 0.5), (1.0, 1.0, 0.5), WOOD, cut=True),
        cone((0.06, 0, mast - 0.1), 0.04, 0.04, mast + 0.08, WOOD),
        prism((0.02 - quarter, 0, mast + 0.02), quarter, mast * 0.82, 0.035, CREAM),
        box((-0.4 - sail, 0, mast), (0.4, 0.2, 1.2), CREAM, cut=True),
        prism((0.12 + quarter * 0.5, 0, mast * 0.82), quarter * 0.55, mast * 0.6, 0.035, colour),
    ]


def house(u: Sequence[float], colour: Vector) -> list[Part]:
    depth, width = between(u[0], 0.32, 0.42), between(u[1], 0.36, 0.48)
    wall, roof = between(u[2], 0.22, 0.30), between(u[3], 0.14, 0.22)
    top = 2 * wall
    windows = [
        box((depth, y, wall * 1.15), (0.03, 0.085, 0.085), GLASS)
        for y in (-0.6 * width, 0.6 * width)
    ]
    return [
        box((0, 0, wall), (depth, width, wall), colour),
        prism((0, 0, top + roof), depth + 0.08, roof, width + 0.06, TERRACOTTA),
        box((-0.5 * depth, 0.55 * width, top + roof), (0.07, 0.07, roof + 0.1), DARK),
        box((depth, 0, 0.55 * wall), (0.03, 0.09, 0.55 * wall), DARK),
        *windows,
    ]


def guitar(u: Sequence[float], colour: Vector) -> list[Part]:
    lower, upper = between(u[0], 0.28, 0.34), between(u[1], 0.20, 0.26)
    neck, thick = between(u[2], 0.20, 0.30), between(u[3], 0.10, 0.14)
    bridge = towards((1, 0, 0))
    waist = lower + 0.55 * upper
    return [
        cone((0, 0, 0), lower, lower, thick, colour, rotation=bridge),
        cone((0, 0, waist), upper, upper, thick, colour, rotation=bridge),
        cone((thick, 0, 0.45 * waist), 0.1, 0.1, 0.012, DARK, rotation=bridge),
        box((thick, 0, -0.3 * lower), (0.025, 0.11, 0.025), DARK),
        box((0.03, 0, waist + upper + neck - 0.08), (0.05, 0.065, neck + 0.06), WOOD),
        box((0.02, 0, waist + upper + 2 * neck + 0.04), (0.05, 0.10, 0.11), DARK),
    ]


def bottle(u: Sequence[float], colour: Vector) -> list[Part]:
    body, radius = between(u[0], 0.34, 0.48), between(u[1], 0.20, 0.26)
    shoulder, neck = between(u[2], 0.10, 0.18), between(u[3], 0.12, 0.2)
    throat = body + 2 * shoulder
    return [
        cone((0, 0, 0), radius, radius, body, colour),
        cone((0, 0, body + shoulder), radius, 0.085, shoulder, colour),
        cone((0, 0, throat + neck / 2), 0.085, 0.085, neck, colour),
        cone((0, 0, throat + 1.5 * neck), 0.105, 0.105, 0.05, DARK),
        cone((0, 0, -0.05), radius + 0.012, radius + 0.012, body * 0.4, CREAM),
    ]


def snowman(u: Sequence[float], colour: Vector) -> list[Part]:
    base, chest = between(u[0], 0.34, 0.42), between(u[1], 0.24, 0.30)
    head, hat = between(u[2], 0.18, 0.22), between(u[3], 0.10, 0.17)
    middle = base + 0.75 * chest
    top = middle + 0.7 * chest + 0.8 * head
    eyes = [
        ellipsoid((head * 0.85, y, top + 0.06), (0.045, 0.045, 0.045), DARK) for y in (-0.08, 0.08)
    ]
    buttons = [
        ellipsoid((chest * 0.97, 0, middle + z), (0.05, 0.05, 0.05), DARK) for z in (-0.08, 0.09)
    ]
    return [
        ellipsoid((0, 0, 0), (base, base, base * 0.92), colour),
        ellipsoid((0, 0, middle), (chest, chest, chest * 0.92), colour),
        ellipsoid((0, 0, top), (head, head, head), colour),
        rod((head * 0.8, 0, top), (head + 0.2, 0, top - 0.02), 0.055, 0.01, (0.98, 0.45, 0.05)),
        cone((0, 0, top + head * 0.85), head * 1.25, head * 1.25, 0.03, DARK),
        cone((0, 0, top + head * 0.85 + hat), head * 0.8, head * 0.8, hat, DARK),
        *eyes,
        *buttons,
    ]


def cactus(u: Sequence[float], colour: Vector) -> list[Part]:
    height, radius = between(u[0], 0.38, 0.50), between(u[1], 0.12, 0.16)
    low, high = between(u[2], -0.1, 0.08), between(u[3], 0.1, 0.26)
    arm, reach = radius * 0.68, radius + 0.2
    right = [
        rod((0, 0, low), (0, reach, low), arm, arm, colour),
        ellipsoid((0, reach, low), (arm, arm, arm), colour),
        rod((0, reach, low), (0, reach, low + 0.34), arm, arm, colour),
        ellipsoid((0, reach, low + 0.34), (arm, arm, arm), colour),
    ]
    left = [
        rod((0, 0, high - 0.12), (0, -reach, high - 0.12), arm, arm, colour),
        ellipsoid((0, -reach, high - 0.12), (arm, arm, arm), colour),
        rod((0, -reach, high - 0.12), (0, -reach, high + 0.1), arm, arm, colour),
        ellipsoid((0, -reach, high + 0.1), (arm, arm, arm), colour),
    ]
    return [
        cone((0, 0, 0), radius, radius, height, colour),
        ellipsoid((0, 0, height), (radius, radius, radius), colour),
        *right,
        *left,
        cone((0, 0, -height - 0.02), 0.2, 0.28, 0.14, TERRACOTTA),
    ]


def umbrella(u: Sequence[float], colour: Vector) -> list[Part]:
    canopy, dome = between(u[0], 0.50, 0.62), between(u[1], 0.26, 0.40)
    pole, hook = between(u[2], 0.30, 0.40), between(u[3], 0.09, 0.13)
    top = 2 * pole
    return [
        ellipsoid((0, 0, top - 0.1), (canopy, canopy, dome), colour),
        ellipsoid((0, 0, top - 0.16), (canopy - 0.05, canopy - 0.05, dome - 0.02), CREAM, cut=True),
        box((0, 0, top - 0.6), (0.9, 0.9, 0.5), CREAM, cut=True),
        ring((0, hook, 0), hook, 0.05, WOOD, rotation=towards((1, 0, 0))),
        box((0, hook, 0.25), (0.2, hook + 0.3, 0.25), WOOD, cut=True),
        cone((0, 0, pole), 0.045, 0.045, pole + 0.04, METAL),
        cone((0, 0, top + dome - 0.06), 0.035, 0.02, 0.07, DARK),
        ellipsoid((0, 0, 0.02), (0.05, 0.05, 0.06), WOOD),
    ]


def fish(u: Sequence[float], colour: Vector) -> list[Part]:
    length, height = between(u[0], 0.42, 0.54), between(u[1], 0.24, 0.34)
    thick, tail = between(u[2], 0.12, 0.18), between(u[3], 0.18, 0.28)
    eyes = [
        ellipsoid((0.62 * length, y, 0.07), (0.055, 0.035, 0.055), DARK)
        for y in (-0.72 * thick, 0.72 * thick)
    ]
    fan = towards((1, 0, 0))
    return [
        ellipsoid((0, 0, 0), (length, thick, height), colour),
        prism((-length - 0.08, 0, 0), tail, tail * 0.8, 0.035, METAL, rotation=fan),
        prism((-0.04, 0, height + 0.02), 0.2, 0.11, 0.03, METAL),
        prism((0.02, 0, -height - 0.0), 0.12, 0.08, 0.03, METAL, rotation=towards((0, 0, -1))),
        *eyes,
    ]


def sofa(u: Sequence[float], colour: Vector) -> list[Part]:
    width, depth = between(u[0], 0.52, 0.70), between(u[1], 0.26, 0.34)
    back, arm = between(u[2], 0.20, 0.32), between(u[3], 0.08, 0.13)
    arms = [
        box((0, y, 0.24), (depth, arm, 0.26), colour, rounding=0.06)
        for y in (-width - arm, width + arm)
    ]
    cushions = [
        box((0.06, y, 0.26), (depth - 0.08, width / 2 - 0.015, 0.08), CREAM, rounding=0.05)
        for y in (-width / 2, width / 2)
    ]
    return [
        box((0, 0, 0.1), (depth, width, 0.12), colour),
        *cushions,
        box((-depth + 0.09, 0, 0.3 + back), (0.1, width, back + 0.08), colour, rounding=0.06),
        *arms,
    ]


def bed(u: Sequence[float], colour: Vector) -> list[Part]:
    length, width = between(u[0], 0.58, 0.74), between(u[1], 0.32, 0.46)
    board, thick = between(u[2], 0.18, 0.30), between(u[3], 0.08, 0.13)
    pillows = [
        ellipsoid((-length + 0.2, y, 0.26 + thick), (0.14, 0.15, 0.075), (0.96, 0.96, 0.96))
        for y in (-0.48 * width, 0.48 * width)
    ]
    return [
        box((0, 0, 0.1), (length, width, 0.07), WOOD),
        box((0, 0, 0.14 + thick), (length - 0.03, width - 0.02, thick), CREAM, rounding=0.05),
        box((0.17, 0, 0.16 + thick), (length - 0.18, width + 0.015, thick), colour, rounding=0.04),
        box((-length - 0.03, 0, 0.2 + board), (0.05, width + 0.03, board + 0.2), WOOD),
        box((length + 0.02, 0, 0.16), (0.04, width + 0.03, 0.16), WOOD),
        *pillows,
    ]


def _yaw(angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


BUILDERS: dict[str, Callable[[Sequence[float], Vector], list[Part]]] = {
    builder.__name__: builder
    for builder in (
        mug,
        chair,
        table,
        lamp,
        mushroom,
        rocket,
        hammer,
        car,
        airplane,
        teapot,
        sailboat,
        house,
        guitar,
        bottle,
        snowman,
        cactus,
        umbrella,
        fish,
        sofa,
        bed,
    )
}
CATEGORIES = tuple(BUILDERS)
ASYMMETRIC = (
    "mug",
    "chair",
    "hammer",
    "car",
    "airplane",
    "teapot",
    "sailboat",
    "house",
    "guitar",
    "snowman",
    "fish",
    "sofa",
    "bed",
)


def build(category: str, parameters: Sequence[float], colour: str) -> list[Part]:
    """Parts of one object, centred and inside the sphere of radius 0.6.

    Parameters
    ----------
    category
        One of :data:`CATEGORIES`.
    parameters
        Four shape parameters in [0, 1].
    colour
        One of :data:`COLOURS`.
    """
    return fit(BUILDERS[category](parameters, COLOURS[colour]))
