"""Captioned pictures, drawn without end: one to three shapes on a background, and the sentence that says so.

The grammar, in full (optional parts in brackets; SHAPES, COLORS and the rest stand below):

    caption    = objects " on a " background         ("an" before a vowel)
    objects    = thing [" " PLACE]
               | thing " " RELATION " " thing
               | thing " and " thing
               | thing ", " thing " and " thing
    thing      = "a " [SIZE " "] COLOR " " SHAPE
    background = COLOR " background"
               | COLOR " and " COLOR (" striped" | " checkered") " background"
               | COLOR " to " COLOR " gradient background"
"""

import math
from dataclasses import dataclass
from random import Random
from typing import Final

from PIL import Image, ImageDraw

COLORS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (30, 150, 50),
    "cyan": (60, 215, 225),
    "blue": (35, 65, 210),
    "purple": (130, 45, 165),
    "pink": (250, 150, 195),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES: Final = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
SIZES: Final[dict[str, tuple[float, float]]] = {"small": (0.16, 0.18), "large": (0.23, 0.25)}
"""Radii, as parts of the picture's width."""
RELATIONS: Final = ("left of", "right of", "above", "below", "inside")
PLACES: Final[dict[str, tuple[float, float]]] = {
    "in the centre": (0.5, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
    "on the left": (0.28, 0.5),
    "on the right": (0.72, 0.5),
}
PATTERNS: Final = ("plain", "striped", "checkered", "gradient")

_SUPERSAMPLING: Final = 4


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape: its center and radius are parts of the picture's width."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    says_size: bool = True

    def phrase(self) -> str:
        return with_article(f"{self.size + ' ' if self.says_size else ''}{self.color} {self.shape}")


@dataclass(frozen=True, slots=True)
class Background:
    """A pattern of one or two colors; `phase` and `horizontal` are where it varies unsaid."""

    pattern: str
    colors: tuple[str, ...]
    horizontal: bool = False
    phase: float = 0.0

    def phrase(self) -> str:
        if self.pattern == "plain":
            return with_article(f"{self.colors[0]} background")
        if self.pattern == "gradient":
            return with_article(f"{self.colors[0]} to {self.colors[1]} gradient background")
        return with_article(f"{self.colors[0]} and {self.colors[1]} {self.pattern} background")


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's contents, and what its caption says of them; `relation` is a RELATION, a PLACE or nothing."""

    things: tuple[Thing, ...]
    background: Background
    relation: str = ""

    def caption(self) -> str:
        phrases = [thing.phrase() for thing in self.things]
        if len(phrases) == 1:
            objects = f"{phrases[0]} {self.relation}".strip()
        elif len(phrases) == 2:
            objects = f"{phrases[0]} {self.relation or 'and'} {phrases[1]}"
        else:
            objects = f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
        return f"{objects} on {self.background.phrase()}"


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def random_scene(random: Random, *, counts: tuple[float, float, float] = (0.45, 0.45, 0.1)) -> Scene:
    """A scene of one, two or three things, as often as `counts` weighs them."""
    background = _random_background(random)
    count = random.choices((1, 2, 3), counts)[0]
    if count == 1:
        place = random.choice(("", "", *PLACES))
        thing = _random_thing(random, background.colors)
        x, y = PLACES.get(place, (random.uniform(0.32, 0.68), random.uniform(0.32, 0.68)))
        return Scene(
            (_moved(thing, x + random.uniform(-0.02, 0.02), y + random.uniform(-0.02, 0.02)),), background, place
        )
    if count == 2:
        return _random_pair(random, background)
    return _random_three(random, background)


def draw(scene: Scene, width: int = 64) -> Image.Image:
    """The scene as an RGB picture, `width` pixels square, anti-aliased."""
    large = width * _SUPERSAMPLING
    picture = _draw_background(scene.background, large)
    canvas = ImageDraw.Draw(picture)
    for thing in reversed(scene.things):  # what is inside another stands before it
        _draw_thing(canvas, thing, large)
    return picture.reduce(_SUPERSAMPLING)


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold."""
    words = " ".join(
        (
            *COLORS,
            *SHAPES,
            *SIZES,
            *RELATIONS,
            *PLACES,
            "a an the and on to at in striped checkered gradient background , .",
        )
    )
    return tuple(dict.fromkeys(words.split()))


def _random_background(random: Random) -> Background:
    pattern = random.choices(PATTERNS, (0.55, 0.15, 0.15, 0.15))[0]
    colors = random.sample(list(COLORS), 1 if pattern == "plain" else 2)
    return Background(pattern, tuple(colors), random.random() < 0.5, random.random())


def _random_thing(random: Random, taken: tuple[str, ...], size: str | None = None) -> Thing:
    color = random.choice([name for name in COLORS if name not in taken])
    said = random.random() < 0.6
    size = size or random.choice(list(SIZES))
    radius = random.uniform(*SIZES[size])
    return Thing(random.choice(SHAPES), color, size, 0.5, 0.5, radius, said)


def _moved(thing: Thing, x: float, y: float) -> Thing:
    return Thing(thing.shape, thing.color, thing.size, x, y, thing.radius, thing.says_size)


def _random_pair(random: Random, background: Background) -> Scene:
    relation = random.choice(("", *RELATIONS))
    if relation == "inside":
        outer = _random_thing(random, background.colors, "large")
        while outer.shape in ("ring", "cross", "star"):
            outer = _random_thing(random, background.colors, "large")
        inner = _random_thing(random, (*background.colors, outer.color), "small")
        x, y = random.uniform(0.36, 0.64), random.uniform(0.36, 0.64)
        outer = Thing(outer.shape, outer.color, "large", x, y, random.uniform(0.34, 0.38), outer.says_size)
        inner = Thing(inner.shape, inner.color, "small", x, y + 0.02, random.uniform(0.15, 0.17), inner.says_size)
        return Scene((inner, outer), background, relation)
    first = _random_thing(random, background.colors)
    second = _random_thing(random, (*background.colors, first.color))
    near, far = random.uniform(0.24, 0.28), random.uniform(0.72, 0.76)
    shift = random.uniform(-0.12, 0.12)
    across = relation in ("left of", "right of") or (not relation and random.random() < 0.5)
    ends = (far, near) if relation in ("right of", "below") else (near, far)
    if not relation and random.random() < 0.5:
        ends = ends[::-1]
    places = [
        (end, 0.5 + sign * shift) if across else (0.5 + sign * shift, end)
        for end, sign in zip(ends, (1, -1), strict=True)
    ]
    return Scene((_moved(first, *places[0]), _moved(second, *places[1])), background, relation)


def _random_three(random: Random, background: Background) -> Scene:
    things: list[Thing] = []
    taken = background.colors
    places = [(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)]
    for x, y in random.sample(places, 3):
        thing = _random_thing(random, taken)
        taken = (*taken, thing.color)
        things.append(_moved(thing, x + random.uniform(-0.03, 0.03), y + random.uniform(-0.03, 0.03)))
    return Scene(tuple(things), background)


def _draw_background(background: Background, width: int) -> Image.Image:
    colors = [COLORS[name] for name in background.colors]
    picture = Image.new("RGB", (width, width), colors[0])
    canvas = ImageDraw.Draw(picture)
    cell = width // 8
    offset = int(background.phase * 2 * cell)
    if background.pattern == "striped":
        for start in range(-2 * cell + offset, width, 2 * cell):
            box = (start, 0, start + cell - 1, width) if background.horizontal else (0, start, width, start + cell - 1)
            canvas.rectangle(box, fill=colors[1])
    elif background.pattern == "checkered":
        for row in range(-2, 9):
            for column in range(-2, 9):
                if (row + column) % 2 == 0:
                    x, y = column * cell + offset, row * cell + offset
                    canvas.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colors[1])
    elif background.pattern == "gradient":
        ramp = Image.linear_gradient("L").resize((width, width))
        ramp = ramp.rotate(90) if background.horizontal else ramp
        picture = Image.composite(Image.new("RGB", (width, width), colors[1]), picture, ramp)
    return picture


def _draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing, width: int) -> None:
    x, y, radius = thing.x * width, thing.y * width, thing.radius * width
    fill = COLORS[thing.color]
    if thing.shape == "circle":
        canvas.circle((x, y), radius, fill=fill)
    elif thing.shape == "ring":
        canvas.circle((x, y), radius, outline=fill, width=round(radius * 0.42))
    elif thing.shape == "cross":
        arm = radius * 0.34
        canvas.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        canvas.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
    else:
        canvas.polygon([(x + radius * dx, y + radius * dy) for dx, dy in OUTLINES[thing.shape]], fill=fill)


def _regular(corners: int, start: float, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
    angles = [start + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * step / 64 for step in range(64)]
    waves = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(16 * math.sin(t) ** 3 / 16, -(wave + 2.5) / 15) for t, wave in zip(turns, waves, strict=True)]


OUTLINES: Final[dict[str, list[tuple[float, float]]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)],
    "diamond": [(0.0, -1.1), (0.8, 0.0), (0.0, 1.1), (-0.8, 0.0)],
    "star": _regular(10, -math.pi / 2, (1.1, 0.45)),
    "heart": _heart(),
}
"""Corners about the center, in radii; y points down."""
