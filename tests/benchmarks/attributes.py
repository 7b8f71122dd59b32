"""Checks of generated images against their captions without a trained network, and functions that all scores share.

`check_attributes` uses no network: it maps each pixel to the nearest color of the palette, reads the background from
the border, each thing from the pixels of its color, and its shape from the shape mask with the best overlap.
`caption_accuracy` uses a CLIP.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.diffusion.engine import LaneEngine
from pipeline.models.clip import Clip
from pipeline.tasks.generate import Generate
from pipeline.tasks.rows import Row
from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes
from pipeline.training.data.scenes import COLORS, SHAPES, Background, Scene, Thing

HELD_OUT = 1_000
NAMES = tuple(COLORS)
PALETTE = np.array(list(COLORS.values()), dtype=np.float32)


def nearest_colors(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the index of the nearest palette color for each pixel, (H, W)."""
    distances = np.square(image[:, :, None].astype(np.float32) - PALETTE).sum(-1)
    return distances.argmin(-1)


@cache
def shape_mask(shape: str) -> NDArray[np.bool_]:
    """Return the mask of a large instance of a shape, cropped to its bounding box."""
    scene = Scene((Thing(shape, "black", "large", 0.5, 0.5, 0.35),), Background("plain", ("white",)))
    return cropped(np.asarray(draw(scene, 128).convert("L")) < 128)


def cropped(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def best_shape(mask: NDArray[np.bool_]) -> str:
    """Return the shape that overlaps `mask` best when it is stretched to the bounding box of `mask`."""
    box = cropped(mask)
    height, width = box.shape

    def overlap(shape: str) -> float:
        stretched = np.asarray(Image.fromarray(shape_mask(shape)).resize((width, height))) > 0
        return float((stretched & box).sum() / (stretched | box).sum())

    return max(SHAPES, key=overlap)


def check_attributes(image: NDArray[np.uint8], scene: Scene) -> Iterator[tuple[str, bool]]:
    """Yield the kind of each attribute of a caption with a plain background, and whether the image has it."""
    colors = nearest_colors(image)
    border = np.concatenate([colors[0], colors[-1], colors[:, 0], colors[:, -1]])
    yield "background", NAMES[np.bincount(border).argmax()] == scene.background.colors[0]
    inner = colors[1:-1, 1:-1]
    others = Counter(inner[inner != NAMES.index(scene.background.colors[0])].tolist())
    colors_present = {NAMES[index] for index, _ in others.most_common(len(scene.things))}
    centers = []
    for thing in scene.things:
        mask = colors == NAMES.index(thing.color)
        present = thing.color in colors_present and mask.sum() >= 12
        yield "color", present
        yield "shape", present and best_shape(mask) == thing.shape
        centers.append(np.argwhere(mask).mean(0) if present else None)
    if scene.relation in ("left of", "right of", "above", "below"):
        axis, sign = (
            (1 if scene.relation in ("left of", "right of") else 0),
            (1 if scene.relation in ("left of", "above") else -1),
        )
        first, second = centers
        yield "relation", first is not None and second is not None and sign * (second[axis] - first[axis]) > 4


def held_out(things: int, count: int) -> list[Scene]:
    """Return held-out scenes of `things` things, on plain backgrounds, none inside another."""
    selected: list[Scene] = []
    start = 0
    while len(selected) < count:
        batch = scenes(HELD_OUT, start, 200)
        start += 200
        selected += [
            s for s in batch if len(s.things) == things and s.background.pattern == "plain" and s.relation != "inside"
        ]
    return selected[:count]


def generate_images(task: Generate, rows: Sequence[Mapping[str, Any]], lanes: int = 16) -> list[NDArray[np.uint8]]:
    """Return the images of the rows, computed by the lane engine; the default seed of a row is its index."""
    engine = LaneEngine(task.stack.denoise, lanes=lanes, device=task.stack.device, dtype=task.stack.dtype)
    prepared = [task.prepare(Row(**{"seed": index, **row})) for index, row in enumerate(rows)]
    images: dict[int, NDArray[np.uint8]] = {}
    for key, latents in engine.run(task.request(index, row) for index, row in enumerate(prepared)):
        assert isinstance(key, int)
        assert isinstance(latents, torch.Tensor)
        images[key] = task.decode(latents, prepared[key])
    return [images[index] for index in range(len(rows))]


def caption_accuracy(
    clip: Clip,
    images: Sequence[NDArray[np.uint8]],
    drawn: Sequence[Scene],
    words: Sequence[str],
    other: Callable[[Scene, str], Scene],
) -> float:
    """Return how often a CLIP picks the caption of `drawn` among those of `other(scene, word)` for each word."""
    right = 0
    for image, scene in zip(images, drawn, strict=True):
        embedding = clip.embed_images(clip.crop(image)[None])[0]
        captions = [other(scene, word).caption() for word in words]
        texts = torch.stack([clip.embed_text(caption) for caption in captions])
        right += captions[int((texts @ embedding).argmax())] == scene.caption()
    return right / len(drawn)


def with_attribute(attribute: str, index: int = 0) -> Callable[[Scene, str], Scene]:
    """Return a function that changes the shape, color or size of one thing of a scene."""

    def other(scene: Scene, word: str) -> Scene:
        changed = [*scene.things]
        changed[index] = replace(changed[index], **{attribute: word})
        return replace(scene, things=tuple(changed))

    return other


def with_relation(scene: Scene, word: str) -> Scene:
    return replace(scene, relation=word)


def psnr(squared_error: float) -> float:
    """Return the PSNR in dB for a mean squared error of 8-bit levels."""
    return float(10 * np.log10(255**2 / squared_error))
