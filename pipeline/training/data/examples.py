"""Sources of captioned training images. An example depends only on the seed and its index.

Scenes and textures are drawn on demand, without end. `table.py` has the source for a user's own table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.training.data.drawing import draw
from pipeline.training.data.hard_negatives import hard_negative
from pipeline.training.data.scenes import Scene, random_scene, vocabulary
from pipeline.training.data.textures import texture

FAMILY_SIZE: Final = 4
"""The number of scenes in a family of hard negatives."""
FAMILY_SEED: Final = "siblings"
"""Part of the random seed of a family. The embedded CLIP was trained with it, so it must not change."""

Example = tuple[Image.Image, str]
"""An RGB image and its caption."""


class Source(Protocol):
    """An endless sequence of captioned images for each seed."""

    @property
    def size(self) -> int | None:
        """The number of distinct images; None if there is no limit."""
        ...

    def words(self) -> tuple[str, ...]:
        """Return the words that the tokenizer should encode as single tokens."""
        ...

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        """Return examples `start` to `start + count` of a seed, as images of `width` x `width` pixels."""
        ...


@dataclass(frozen=True, slots=True)
class Scenes:
    """Drawn scenes of shapes on backgrounds, with captions that describe them."""

    size: None = None

    def words(self) -> tuple[str, ...]:
        return vocabulary()

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        return [(draw(scene, width), scene.caption()) for scene in scenes(seed, start, count)]


@dataclass(frozen=True, slots=True)
class HardNegatives(Scenes):
    """Scenes in consecutive families of FAMILY_SIZE, whose members differ from the first in one word of the caption."""

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        families = range(start // FAMILY_SIZE, -(-(start + count) // FAMILY_SIZE))
        members = [scene for number in families for scene in _family(seed, number)]
        first = start - families.start * FAMILY_SIZE
        return [(draw(scene, width), scene.caption()) for scene in members[first : first + count]]


@dataclass(frozen=True, slots=True)
class Textures:
    """Images with fine detail and empty captions."""

    size: None = None

    def words(self) -> tuple[str, ...]:
        return ()

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        return [(texture(Random(f"{seed}/{start + index}"), width), "") for index in range(count)]


SCENES: Final = Scenes()
HARD_NEGATIVES: Final = HardNegatives()
TEXTURES: Final = Textures()


def scenes(seed: int, start: int, count: int) -> list[Scene]:
    """Return scenes `start` to `start + count` of a seed."""
    return [random_scene(Random(f"{seed}/{start + index}")) for index in range(count)]


def _family(seed: int, number: int) -> list[Scene]:
    """Return FAMILY_SIZE scenes with distinct captions."""
    (first,) = scenes(seed, number, 1)
    family, random = {first.caption(): first}, Random(f"{seed}/{number}/{FAMILY_SEED}")
    while len(family) < FAMILY_SIZE:
        member = hard_negative(first, random)
        family.setdefault(member.caption(), member)
    return list(family.values())


def stack_pixels(images: Sequence[Image.Image | Example]) -> Tensor:
    """Return pixels (B, 3, H, W) in [-1, 1] of RGB images of one size, or of examples, channels last in memory."""
    arrays = [np.asarray(image[0] if isinstance(image, tuple) else image) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
