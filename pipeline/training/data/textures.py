"""Random images with fine detail, and their degradation: the training data of the upscaler."""

import io
import math
from collections.abc import Callable
from random import Random
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pipeline.training.data.drawing import draw
from pipeline.training.data.scenes import random_scene

_SUPERSAMPLING: Final = 3
_LETTERS: Final = "ABCDEFGHKLMNPRSTUVWXYZabcdefghkmnopqrstuvwxyz0123456789&?!"

Color = tuple[int, int, int]


def texture(random: Random, width: int) -> Image.Image:
    """Return an anti-aliased RGB image of `width` x `width` pixels with one or two kinds of detail."""
    kind = random.choice(TEXTURE_KINDS)
    image = kind(random, width)
    if random.random() < 0.3:
        other = random.choice(TEXTURE_KINDS)(random, width)
        mask = Image.new("L", (width, width))
        _blob(ImageDraw.Draw(mask), random, width, 255)
        image = Image.composite(other, image, mask)
    return image


def degrade(image: Image.Image, factor: int, random: Random) -> Image.Image:
    """Return the image reduced by `factor`: averaged (50 %), bicubic (25 %), or blurred and averaged (25 %).

    In 25 % of the cases the result is also compressed as JPEG.
    """
    width = image.width // factor
    kind = random.choices(("area", "bicubic", "blur"), (0.5, 0.25, 0.25))[0]
    if kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 0.7 * factor)))
    resampling = Image.Resampling.BICUBIC if kind == "bicubic" else Image.Resampling.BOX
    small = image.resize((width, width), resampling)
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
    """Draw smooth noise of two scales, between two colors."""
    generator = np.random.default_rng(random.getrandbits(32))
    total = Image.new("F", (width, width))
    for cells, weight in ((random.randint(2, 6), 0.7), (random.randint(8, 24), 0.3)):
        layer = Image.fromarray(generator.random((cells, cells), dtype=np.float32))
        layer = layer.resize((width, width), Image.Resampling.BICUBIC)
        total = Image.fromarray(np.asarray(total) + weight * np.asarray(layer))
    ramp = np.clip(np.asarray(total), 0, 1)[..., None]
    first, second = np.array(_color(random)), np.array(_color(random))
    return Image.fromarray((first + ramp * (second - first)).astype(np.uint8))


def _letters(random: Random, width: int) -> Image.Image:
    image, canvas, large = _blank_image(random, width)
    size = random.uniform(10, 28) * _SUPERSAMPLING
    font, ink, top = ImageFont.load_default(size), _color(random), -random.random() * size
    while top < large:
        line = "".join(random.choice(_LETTERS + "  ") for _ in range(2 + int(2.5 * large / size)))
        canvas.text((-random.random() * size, top), line, fill=ink, font=font)
        top += 1.2 * size
    return image.reduce(_SUPERSAMPLING)


def _lines(random: Random, width: int) -> Image.Image:
    image, canvas, large = _blank_image(random, width)
    for _ in range(random.randint(4, 16)):
        ink, stroke = _color(random), round(random.uniform(0.8, 3) * _SUPERSAMPLING)
        x, y, radius = random.random() * large, random.random() * large, random.uniform(0.1, 0.6) * large
        if random.random() < 0.6:
            angle = random.uniform(0, 2 * math.pi)
            canvas.line((x, y, x + 2 * radius * math.cos(angle), y + 2 * radius * math.sin(angle)), ink, stroke)
        else:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ink, width=stroke)
    return image.reduce(_SUPERSAMPLING)


def _blobs(random: Random, width: int) -> Image.Image:
    image, canvas, large = _blank_image(random, width)
    for _ in range(random.randint(1, 5)):
        _blob(canvas, random, large, _color(random))
    return image.reduce(_SUPERSAMPLING)


def _scene(random: Random, width: int) -> Image.Image:
    """Draw a crop of a scene of shapes at 256 pixels, four times the size of the embedded text-to-image model."""
    image = draw(random_scene(random), 256)
    if width >= 256:
        return image.resize((width, width), Image.Resampling.BICUBIC)
    left, top = random.randint(0, 256 - width), random.randint(0, 256 - width)
    return image.crop((left, top, left + width, top + width))


def _blank_image(random: Random, width: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """Return a supersampled image of one color, a canvas on it, and its width."""
    large = width * _SUPERSAMPLING
    image = Image.new("RGB", (large, large), _color(random))
    return image, ImageDraw.Draw(image), large


def _two_colored(mask: np.ndarray, random: Random) -> Image.Image:
    colors = np.array([_color(random), _color(random)], dtype=np.uint8)
    return Image.fromarray(colors[mask.astype(int)]).reduce(_SUPERSAMPLING)


def _blob(canvas: ImageDraw.ImageDraw, random: Random, width: int, fill: Color | int) -> None:
    """Draw a random polygon or ellipse."""
    x, y, radius = random.random() * width, random.random() * width, random.uniform(0.15, 0.6) * width
    if random.random() < 0.4:
        height = radius * random.uniform(0.5, 1)
        canvas.ellipse((x - radius, y - height, x + radius, y + height), fill=fill)
        return
    angles = sorted(random.uniform(0, 2 * math.pi) for _ in range(random.randint(3, 7)))
    canvas.polygon([(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles], fill=fill)


def _color(random: Random) -> Color:
    return random.randrange(256), random.randrange(256), random.randrange(256)


TEXTURE_KINDS: Final[tuple[Callable[[Random, int], Image.Image], ...]] = (
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
"""The kinds of detail; a kind that is listed n times is n times as frequent."""
