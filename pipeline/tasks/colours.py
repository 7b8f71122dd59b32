"""Faithfulness of an enlarged picture: its low frequencies drawn back to its source's."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

ROUNDS: Final = 12
"""At most. Each leaves two fifths of the difference, or more where values are cut off at black or white."""
TOLERANCE: Final = 1.0
"""Levels of 255 by which an average may differ."""

_STRIP: Final = 64
_MARGIN: Final = 2
"""Rows of the source that are worked on at once, and those that bicubic enlarging sees beside them."""


def corrected(enlarged: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`enlarged` (f H, f W, 3) such that its averages over f x f pixels are `source` (H, W, 3), or nearly.

    Back-projection (Irani and Peleg 1991): the difference of the two, enlarged, is subtracted until it is within
    TOLERANCE, ROUNDS times at most. Memory: the difference in float32, and a strip of the picture."""
    for _ in range(ROUNDS):
        drift = averages(enlarged, source.shape[0]) - source
        if max(drift.max(), -drift.min()) <= TOLERANCE:
            break
        enlarged = _without(enlarged, torch.from_numpy(drift.transpose(2, 0, 1)))
    return enlarged


def averages(enlarged: NDArray[np.uint8], height: int) -> NDArray[np.float32]:
    """uint8 (f H, f W, 3) averaged over f x f pixels: float32 (H, W, 3)."""
    factor = enlarged.shape[0] // height
    width = enlarged.shape[1] // factor
    found = np.empty((height, width, 3), np.float32)
    for first, last in _strips(height):
        part = enlarged[factor * first : factor * last].reshape(last - first, factor, width, factor, 3)
        found[first:last] = part.mean(axis=(1, 3), dtype=np.float32)
    return found


def _without(enlarged: NDArray[np.uint8], drift: torch.Tensor) -> NDArray[np.uint8]:
    """`enlarged` minus the drift (3, H, W), enlarged bicubically."""
    height = drift.shape[1]
    factor = enlarged.shape[0] // height
    changed = np.empty_like(enlarged)
    for first, last in _strips(height):
        top, bottom = max(first - _MARGIN, 0), min(last + _MARGIN, height)
        strip = F.interpolate(drift[None, :, top:bottom], scale_factor=factor, mode="bicubic")[0]
        strip = strip[:, factor * (first - top) : factor * (last - top)].permute(1, 2, 0).numpy()
        rows = slice(factor * first, factor * last)
        changed[rows] = (enlarged[rows] - strip).round().clip(0, 255).astype(np.uint8)
    return changed


def _strips(height: int) -> Iterator[tuple[int, int]]:
    for first in range(0, height, _STRIP):
        yield first, min(first + _STRIP, height)
