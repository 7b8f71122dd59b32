"""Random scenes of one to three things on a background, and the grammar of their captions.

The full grammar (optional parts in brackets; uppercase names are the tables below):

    caption    = objects " on a " background         ("an" before a vowel)
    objects    = thing [" " POSITION]
               | thing " " RELATION " " thing
               | thing " and " thing
               | thing ", " thing " and " thing
    thing      = "a " [SIZE " "] COLOR " " SHAPE
    background = COLOR " background"
               | COLOR " and " COLOR (" striped" | " checkered") " background"
               | COLOR " to " COLOR " gradient background"
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Final

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
"""The range of radii of each size, in image widths."""
RELATIONS: Final = ("left of", "right of", "above", "below", "inside")
POSITIONS: Final[dict[str, tuple[float, float]]] = {
    "in the centre": (0.5, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
    "on the left": (0.28, 0.5),
    "on the right": (0.72, 0.5),
}
"""The centers of the named positions, in image widths."""
PATTERNS: Final = ("plain", "striped", "checkered", "gradient")


@dataclass(frozen=True, slots=True)
class Thing:
    """One colored shape; its center and radius are in image widths."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    says_size: bool = True
    """Whether the caption names the size."""

    def phrase(self) -> str:
        """Return the part of the caption that describes the thing."""
        return _with_article(f"{self.size + ' ' if self.says_size else ''}{self.color} {self.shape}")


@dataclass(frozen=True, slots=True)
class Background:
    """A pattern of one or two colors. The caption does not mention `horizontal` and `phase`."""

    pattern: str
    colors: tuple[str, ...]
    horizontal: bool = False
    phase: float = 0.0

    def phrase(self) -> str:
        """Return the part of the caption that describes the background."""
        if self.pattern == "plain":
            return _with_article(f"{self.colors[0]} background")
        if self.pattern == "gradient":
            return _with_article(f"{self.colors[0]} to {self.colors[1]} gradient background")
        return _with_article(f"{self.colors[0]} and {self.colors[1]} {self.pattern} background")


@dataclass(frozen=True, slots=True)
class Scene:
    """The contents of an image. `relation` is the relation or position that the caption names, or empty."""

    things: tuple[Thing, ...]
    background: Background
    relation: str = ""

    def caption(self) -> str:
        """Return the caption, which the grammar above defines."""
        phrases = [thing.phrase() for thing in self.things]
        if len(phrases) == 1:
            objects = f"{phrases[0]} {self.relation}".strip()
        elif len(phrases) == 2:
            objects = f"{phrases[0]} {self.relation or 'and'} {phrases[1]}"
        else:
            objects = f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
        return f"{objects} on {self.background.phrase()}"


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def random_scene(random: Random, *, counts: tuple[float, float, float] = (0.45, 0.45, 0.1)) -> Scene:
    """Return a scene of one, two or three things, with the probabilities `counts`."""
    background = _random_background(random)
    count = random.choices((1, 2, 3), counts)[0]
    if count == 1:
        position = random.choice(("", "", *POSITIONS))
        thing = _random_thing(random, background.colors)
        x, y = POSITIONS.get(position, (random.uniform(0.32, 0.68), random.uniform(0.32, 0.68)))
        thing = replace(thing, x=x + random.uniform(-0.02, 0.02), y=y + random.uniform(-0.02, 0.02))
        return Scene((thing,), background, position)
    if count == 2:
        return _random_pair(random, background)
    return _random_three(random, background)


def vocabulary() -> tuple[str, ...]:
    """Return every word that can occur in a caption."""
    words = " ".join(
        (
            *COLORS,
            *SHAPES,
            *SIZES,
            *RELATIONS,
            *POSITIONS,
            "a an the and on to at in striped checkered gradient background , .",
        )
    )
    return tuple(dict.fromkeys(words.split()))


def _random_background(random: Random) -> Background:
    pattern = random.choices(PATTERNS, (0.55, 0.15, 0.15, 0.15))[0]
    colors = random.sample(list(COLORS), 1 if pattern == "plain" else 2)
    return Background(pattern, tuple(colors), random.random() < 0.5, random.random())


def _random_thing(random: Random, used_colors: tuple[str, ...], size: str | None = None) -> Thing:
    """Return a thing in the middle of the image, in a color that is not used yet."""
    color = random.choice([name for name in COLORS if name not in used_colors])
    says_size = random.random() < 0.6
    size = size or random.choice(list(SIZES))
    radius = random.uniform(*SIZES[size])
    return Thing(random.choice(SHAPES), color, size, 0.5, 0.5, radius, says_size)


def _random_pair(random: Random, background: Background) -> Scene:
    relation = random.choice(("", *RELATIONS))
    if relation == "inside":
        return _random_nested_pair(random, background)
    first = _random_thing(random, background.colors)
    second = _random_thing(random, (*background.colors, first.color))
    near, far = random.uniform(0.24, 0.28), random.uniform(0.72, 0.76)
    shift = random.uniform(-0.12, 0.12)
    horizontal = relation in ("left of", "right of") or (not relation and random.random() < 0.5)
    first_end, second_end = (far, near) if relation in ("right of", "below") else (near, far)
    if not relation and random.random() < 0.5:
        first_end, second_end = second_end, first_end
    centers = ((first_end, 0.5 + shift), (second_end, 0.5 - shift))
    (x1, y1), (x2, y2) = centers if horizontal else ((y, x) for x, y in centers)
    return Scene((replace(first, x=x1, y=y1), replace(second, x=x2, y=y2)), background, relation)


def _random_nested_pair(random: Random, background: Background) -> Scene:
    """Return a small thing inside a large one, which is not a ring, a cross or a star: they have no room for it."""
    outer = _random_thing(random, background.colors, "large")
    while outer.shape in ("ring", "cross", "star"):
        outer = _random_thing(random, background.colors, "large")
    inner = _random_thing(random, (*background.colors, outer.color), "small")
    x, y = random.uniform(0.36, 0.64), random.uniform(0.36, 0.64)
    outer = replace(outer, x=x, y=y, radius=random.uniform(0.34, 0.38))
    inner = replace(inner, x=x, y=y + 0.02, radius=random.uniform(0.15, 0.17))
    return Scene((inner, outer), background, "inside")


def _random_three(random: Random, background: Background) -> Scene:
    """Return three things in three of the four corners."""
    things: list[Thing] = []
    used_colors = background.colors
    corners = [(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)]
    for x, y in random.sample(corners, 3):
        thing = _random_thing(random, used_colors)
        used_colors = (*used_colors, thing.color)
        things.append(replace(thing, x=x + random.uniform(-0.03, 0.03), y=y + random.uniform(-0.03, 0.03)))
    return Scene(tuple(things), background)
