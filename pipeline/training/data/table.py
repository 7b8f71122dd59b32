"""A user's table as a source of examples, after `prepare_table` has decoded and resized its images."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.training.data.examples import Example

PIXELS_FILE: Final = "pictures.raw"
"""The RGB bytes of all images, one after the other."""
CAPTIONS_FILE: Final = "captions.json"
"""The captions, the width of the images and the URL of the table."""
MAX_WORDS: Final = 8000
"""The number of most frequent words that become single tokens; rarer words are spelled in bytes."""


@dataclass(frozen=True, slots=True)
class Table:
    """Captioned images of one width in `folder`. The source repeats them in a new random order each epoch."""

    folder: Path

    @property
    def size(self) -> int:
        """The number of images."""
        return len(_load(self.folder)[1])

    def words(self) -> tuple[str, ...]:
        """Return the most frequent words of the captions."""
        counts = Counter(word for caption in _load(self.folder)[1] for word in re.findall(r"[a-z]+", caption.lower()))
        return tuple(word for word, _ in counts.most_common(MAX_WORDS))

    def examples(self, seed: int, start: int, count: int, width: int) -> list[Example]:
        """Return examples `start` to `start + count`. ValueError if the images have another width."""
        pixels, captions = _load(self.folder)
        if pixels.shape[1] != width:
            raise ValueError(f"{self.folder} holds images {pixels.shape[1]} pixels wide; this recipe needs {width}")
        positions = (divmod(start + index, self.size) for index in range(count))
        rows = [int(_epoch_order(seed, epoch, self.size)[position]) for epoch, position in positions]
        return [(Image.fromarray(pixels[row]), captions[row]) for row in rows]


@cache
def _load(folder: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """Return memory-mapped pixels (N, width, width, 3) and N captions."""
    table = json.loads((folder / CAPTIONS_FILE).read_text(encoding="utf-8"))
    shape = (len(table["captions"]), table["width"], table["width"], 3)
    return np.memmap(folder / PIXELS_FILE, dtype=np.uint8, mode="r", shape=shape), table["captions"]


@cache
def _epoch_order(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(size)
