"""What recipes learn from: captioned pictures, the same for the same seed and place.

Scenes and textures are drawn and never end; a user's table, which `latentmill train --data` prepares, comes round
again and again, each time in another order.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.training.data.hard_negatives import hard_negative
from pipeline.training.data.scenes import Scene, draw, random_scene, vocabulary
from pipeline.training.data.textures import texture

PICTURES_FILE: Final = "pictures.raw"
CAPTIONS_FILE: Final = "captions.json"
FAMILY: Final = 4
MOST_WORDS: Final = 8000
"""Of a table's captions that the tokenizer knows whole; it spells the rarer ones."""

Example = tuple[Image.Image, str]
"""An RGB picture and its caption."""


class Source(Protocol):
    """Captioned pictures in an endless row that a seed names."""

    @property
    def size(self) -> int | None:
        """How many differ; None where they never end."""
        ...

    def words(self) -> tuple[str, ...]:
        """What the captions' tokenizer should know whole."""
        ...

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        """Examples `start` to `start + count` of the row, `width` pixels square."""
        ...


@dataclass(frozen=True, slots=True)
class Scenes:
    """Shapes on backgrounds, and what they are."""

    size: None = None

    def words(self) -> tuple[str, ...]:
        return vocabulary()

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        return [(draw(scene, width), scene.caption()) for scene in scenes(seed, start, count)]


@dataclass(frozen=True, slots=True)
class HardNegatives(Scenes):
    """Scenes in families of FAMILY, which stand together: all but the first differ from it in one word."""

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        numbers = range(start // FAMILY, -(-(start + count) // FAMILY))
        members = [scene for number in numbers for scene in _family(seed, number)]
        first = start - numbers.start * FAMILY
        return [(draw(scene, width), scene.caption()) for scene in members[first : first + count]]


@dataclass(frozen=True, slots=True)
class Textures:
    """Fine detail, of which nothing is said."""

    size: None = None

    def words(self) -> tuple[str, ...]:
        return ()

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        return [(texture(Random(f"{seed}/{start + index}"), width), "") for index in range(count)]


SCENES: Final = Scenes()
HARD_NEGATIVES: Final = HardNegatives()
TEXTURES: Final = Textures()


@dataclass(frozen=True, slots=True)
class Table:
    """A user's pictures and captions, as `prepare_table` left them in `folder`: all of one width."""

    folder: Path

    @property
    def size(self) -> int:
        return len(_kept(self.folder)[1])

    def words(self) -> tuple[str, ...]:
        found = Counter(word for caption in _kept(self.folder)[1] for word in re.findall(r"[a-z]+", caption.lower()))
        return tuple(word for word, _ in found.most_common(MOST_WORDS))

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        pixels, captions = _kept(self.folder)
        if pixels.shape[1] != width:
            raise ValueError(f"{self.folder} holds pictures of {pixels.shape[1]} pixels; this recipe needs {width}")
        places = (divmod(start + index, self.size) for index in range(count))
        rows = [int(_order(seed, time, self.size)[place]) for time, place in places]
        return [(Image.fromarray(pixels[row]), captions[row]) for row in rows]


def scenes(seed: int, start: int, count: int) -> list[Scene]:
    """Scenes `start` to `start + count` of the endless row that `seed` names."""
    return [random_scene(Random(f"{seed}/{start + index}")) for index in range(count)]


def _family(seed: int, number: int) -> list[Scene]:
    """FAMILY scenes of as many captions."""
    (first,) = scenes(seed, number, 1)
    family, random = {first.caption(): first}, Random(f"{seed}/{number}/hard_negatives")
    while len(family) < FAMILY:
        member = hard_negative(first, random)
        family.setdefault(member.caption(), member)
    return list(family.values())


def pixels_of(pictures: Sequence[Image.Image | Example]) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] of RGB pictures of one size, captioned or not; channels last in memory."""
    alone = [picture[0] if isinstance(picture, tuple) else picture for picture in pictures]
    levels = np.stack([np.asarray(picture) for picture in alone])
    return torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 127.5 - 1


@cache
def _kept(folder: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """Pixels (N, width, width, 3), left on the disk, and N captions."""
    kept = json.loads((folder / CAPTIONS_FILE).read_text(encoding="utf-8"))
    shape = (len(kept["captions"]), kept["width"], kept["width"], 3)
    return np.memmap(folder / PICTURES_FILE, dtype=np.uint8, mode="r", shape=shape), kept["captions"]


@cache
def _order(seed: int, time: int, size: int) -> NDArray[np.int64]:
    """The rows' order when they come round for the `time`-th time."""
    return np.random.default_rng((seed, time)).permutation(size)
