"""Draw scenes as anti-aliased RGB images."""

import math
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFilter

from pipeline.training.data.scenes import COLORS, Background, Scene, Thing

_SUPERSAMPLING: Final = 4
_LINE_WIDTH: Final = 0.04
"""The width of lines, in image widths."""


def draw(scene: Scene, width: int = 64) -> Image.Image:
    """Return the scene as an RGB image of `width` x `width` pixels."""
    large = width * _SUPERSAMPLING
    image = _draw_background(scene.background, large)
    canvas = ImageDraw.Draw(image)
    for thing in reversed(scene.things):  # a thing inside another comes first in the scene and is drawn last
        _draw_thing(canvas, thing, large, COLORS[thing.color])
    return image.reduce(_SUPERSAMPLING)


def draw_lines(scene: Scene, width: int, line_colors: Sequence[str], *, filled: bool) -> Image.Image:
    """Return the scene with a line along the border of each thing, in its color of `line_colors`.

    Things that are not filled show the background."""
    large = width * _SUPERSAMPLING
    background = _draw_background(scene.background, large)
    image = background.copy()
    for thing, color in reversed(list(zip(scene.things, line_colors, strict=True))):
        border = Image.new("L", (large, large))
        _draw_thing(ImageDraw.Draw(border), thing, large, 255)
        inside = border.reduce(_SUPERSAMPLING // 2)
        for _ in range(round(_LINE_WIDTH * 2 * width)):
            inside = inside.filter(ImageFilter.MinFilter(3))
        image.paste(COLORS[color], mask=border)
        fill = Image.new("RGB", image.size, COLORS[thing.color]) if filled else background
        image.paste(fill, mask=inside.resize(image.size))
    return image.reduce(_SUPERSAMPLING)


def _draw_background(background: Background, width: int) -> Image.Image:
    colors = [COLORS[name] for name in background.colors]
    image = Image.new("RGB", (width, width), colors[0])
    canvas = ImageDraw.Draw(image)
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
        image = Image.composite(Image.new("RGB", (width, width), colors[1]), image, ramp)
    return image


def _draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing, width: int, fill: int | tuple[int, int, int]) -> None:
    x, y, radius = thing.x * width, thing.y * width, thing.radius * width
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
    angles = [2 * math.pi * step / 64 for step in range(64)]
    heights = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return [(16 * math.sin(a) ** 3 / 16, -(height + 2.5) / 15) for a, height in zip(angles, heights, strict=True)]


OUTLINES: Final[dict[str, list[tuple[float, float]]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)],
    "diamond": [(0.0, -1.1), (0.8, 0.0), (0.0, 1.1), (-0.8, 0.0)],
    "star": _regular(10, -math.pi / 2, (1.1, 0.45)),
    "heart": _heart(),
}
"""The corners of each polygon relative to its center, in radii; y points down."""
