"""Pictures with fine detail, drawn without end: what an upscaler learns from, and how pictures lose their detail."""

import io
import math
from collections.abc import Callable
from random import Random
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pipeline.training.data.scenes import draw, random_scene

_SUPERSAMPLING: Final = 3
_LETTERS: Final = "ABCDEFGHKLMNPRSTUVWXYZabcdefghkmnopqrstuvwxyz0123456789&?!"

Color = tuple[int, int, int]


def texture(random: Random, width: int) -> Image.Image:
    """An RGB picture, `width` pixels square, anti-aliased: one or two kinds of detail."""
    kind = random.choice(KINDS)
    picture = kind(random, width)
    if random.random() < 0.3:
        other = random.choice(KINDS)(random, width)
        mask = Image.new("L", (width, width))
        _blob(ImageDraw.Draw(mask), random, width, 255)
        picture = Image.composite(other, picture, mask)
    return picture


def degraded(picture: Image.Image, factor: int, random: Random) -> Image.Image:
    """The picture at a `factor`-th of its width: averaged, bicubic or blurred first, one in four a JPEG."""
    width = picture.width // factor
    kind = random.choices(("area", "bicubic", "blur"), (0.5, 0.25, 0.25))[0]
    if kind == "blur":
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 0.7 * factor)))
    resampling = Image.Resampling.BICUBIC if kind == "bicubic" else Image.Resampling.BOX
    small = picture.resize((width, width), resampling)
    if random.random() < 0.25:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=random.randint(70, 96))
        small = Image.open(file).convert("RGB")
    return small


def _stripes(random: Random, width: int) -> Image.Image:
    angle, period, phase = random.uniform(0, math.pi), random.uniform(6, 28), random.random()
    y, x = np.mgrid[: width * _SUPERSAMPLING, : width * _SUPERSAMPLING] / _SUPERSAMPLING
    waves = ((math.cos(angle) * x + math.sin(angle) * y) / period + phase) % 1
    return _two_colored(waves < random.uniform(0.3, 0.7), random)


def _checks(random: Random, width: int) -> Image.Image:
    angle, period = random.uniform(0, math.pi / 2), random.uniform(6, 28)
    y, x = np.mgrid[: width * _SUPERSAMPLING, : width * _SUPERSAMPLING] / _SUPERSAMPLING
    across, down = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    return _two_colored((np.floor(across / period) + np.floor(down / period)) % 2 == 0, random)


def _gradient(random: Random, width: int) -> Image.Image:
    angle = random.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:width, :width] / width - 0.5
    ramp = (math.cos(angle) * x + math.sin(angle) * y + 0.71) / 1.42
    first, second = np.array(_color(random)), np.array(_color(random))
    return Image.fromarray((first + ramp[..., None] * (second - first)).astype(np.uint8))


def _noise(random: Random, width: int) -> Image.Image:
    """Smooth noise of two scales between two colors."""
    draws = np.random.default_rng(random.getrandbits(32))
    total = Image.new("F", (width, width))
    for cells, weight in ((random.randint(2, 6), 0.7), (random.randint(8, 24), 0.3)):
        layer = Image.fromarray(draws.random((cells, cells), dtype=np.float32))
        layer = layer.resize((width, width), Image.Resampling.BICUBIC)
        total = Image.fromarray(np.asarray(total) + weight * np.asarray(layer))
    ramp = np.clip(np.asarray(total), 0, 1)[..., None]
    first, second = np.array(_color(random)), np.array(_color(random))
    return Image.fromarray((first + ramp * (second - first)).astype(np.uint8))


def _letters(random: Random, width: int) -> Image.Image:
    picture, canvas, large = _sheet(random, width)
    size = random.uniform(10, 28) * _SUPERSAMPLING
    font, ink, top = ImageFont.load_default(size), _color(random), -random.random() * size
    while top < large:
        line = "".join(random.choice(_LETTERS + "  ") for _ in range(2 + int(2.5 * large / size)))
        canvas.text((-random.random() * size, top), line, fill=ink, font=font)
        top += 1.2 * size
    return picture.reduce(_SUPERSAMPLING)


def _lines(random: Random, width: int) -> Image.Image:
    picture, canvas, large = _sheet(random, width)
    for _ in range(random.randint(4, 16)):
        ink, stroke = _color(random), round(random.uniform(0.8, 3) * _SUPERSAMPLING)
        x, y, reach = random.random() * large, random.random() * large, random.uniform(0.1, 0.6) * large
        if random.random() < 0.6:
            angle = random.uniform(0, 2 * math.pi)
            canvas.line((x, y, x + 2 * reach * math.cos(angle), y + 2 * reach * math.sin(angle)), ink, stroke)
        else:
            canvas.ellipse((x - reach, y - reach, x + reach, y + reach), outline=ink, width=stroke)
    return picture.reduce(_SUPERSAMPLING)


def _blobs(random: Random, width: int) -> Image.Image:
    picture, canvas, large = _sheet(random, width)
    for _ in range(random.randint(1, 5)):
        _blob(canvas, random, large, _color(random))
    return picture.reduce(_SUPERSAMPLING)


def _scene(random: Random, width: int) -> Image.Image:
    """A part of a scene of shapes, drawn at four times the width that its own model makes."""
    picture = draw(random_scene(random), 256)
    if width >= 256:
        return picture.resize((width, width), Image.Resampling.BICUBIC)
    left, top = random.randint(0, 256 - width), random.randint(0, 256 - width)
    return picture.crop((left, top, left + width, top + width))


def _sheet(random: Random, width: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A picture of one color to draw on, so many times larger as it is reduced to be anti-aliased; and its width."""
    large = width * _SUPERSAMPLING
    picture = Image.new("RGB", (large, large), _color(random))
    return picture, ImageDraw.Draw(picture), large


def _two_colored(first: np.ndarray, random: Random) -> Image.Image:
    colors = np.array([_color(random), _color(random)], dtype=np.uint8)
    return Image.fromarray(colors[first.astype(int)]).reduce(_SUPERSAMPLING)


def _blob(canvas: ImageDraw.ImageDraw, random: Random, width: int, fill: Color | int) -> None:
    """A polygon or an ellipse."""
    x, y, reach = random.random() * width, random.random() * width, random.uniform(0.15, 0.6) * width
    if random.random() < 0.4:
        tall = reach * random.uniform(0.5, 1)
        canvas.ellipse((x - reach, y - tall, x + reach, y + tall), fill=fill)
        return
    turns = sorted(random.uniform(0, 2 * math.pi) for _ in range(random.randint(3, 7)))
    canvas.polygon([(x + reach * math.cos(turn), y + reach * math.sin(turn)) for turn in turns], fill=fill)


def _color(random: Random) -> Color:
    return random.randrange(256), random.randrange(256), random.randrange(256)


KINDS: Final[tuple[Callable[[Random, int], Image.Image], ...]] = (
    _scene,
    _scene,
    _scene,
    _stripes,
    _checks,
    _gradient,
    _noise,
    _letters,
    _lines,
    _blobs,
)
"""Each as often as it stands here."""
