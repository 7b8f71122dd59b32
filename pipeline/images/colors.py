"""Faithfulness of an enlarged picture: low frequencies are its source's, detail stands out of the networks' noise."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.images.resize import resize

ROUNDS: Final = 12
"""At most. Each leaves two fifths of the difference, or more where values are cut off at black or white."""
TOLERANCE: Final = 1.0
"""Levels of 255 by which an average may differ."""

NOISE: Final = 8.0
"""Levels of 255: what autoencoder and U-Net err by. Detail that is weaker tells of them, not of the picture."""

_STRIP: Final = 64
_MARGIN: Final = 3
"""Rows of the source that are worked on at once, and those that bicubic enlarging and WINDOW see beside them."""
_WINDOW: Final = 5
"""Pixels of the side of the square in which the strength of detail is measured."""


def correct_colors(
    enlarged: NDArray[np.uint8], source: NDArray[np.uint8], beat: Callable[[], None] = lambda: None
) -> NDArray[np.uint8]:
    """`enlarged` (f H, f W, 3) such that its averages over f x f pixels are `source` (H, W, 3), or nearly, and that
    it is the source enlarged bicubically wherever the networks saw no more. `beat` is called now and then. Memory: a
    difference of the source's size in float32, and a strip of the picture."""
    return _projected(_without_noise(_projected(enlarged, source, beat), source), source, beat)


def _projected(enlarged: NDArray[np.uint8], source: NDArray[np.uint8], beat: Callable[[], None]) -> NDArray[np.uint8]:
    """Back-projection (Irani and Peleg 1991): the difference of averages and source, enlarged, is subtracted until it
    is within TOLERANCE, ROUNDS times at most."""
    for _ in range(ROUNDS):
        drift = block_means(enlarged, source.shape[0]) - source
        if max(drift.max(), -drift.min()) <= TOLERANCE:
            break
        enlarged = _without(enlarged, torch.from_numpy(drift.transpose(2, 0, 1)))
        beat()
    return enlarged


def _without_noise(enlarged: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Detail, which is what bicubic enlarging does not have, weighed by its power over that and the noise's: Wiener's
    filter, with the power measured around each pixel (Lee 1980)."""
    height = source.shape[0]
    factor = enlarged.shape[0] // height
    changed = np.empty_like(enlarged)
    for first, last in _strips(height):
        top, bottom = max(first - _MARGIN, 0), min(last + _MARGIN, height)
        part = enlarged[factor * top : factor * bottom]
        smooth = resize(source[top:bottom], part.shape[1], part.shape[0], "bicubic").astype(np.float32)
        detail = part - smooth
        power = torch.from_numpy(np.square(detail).mean(2))[None]
        power = F.avg_pool2d(power, _WINDOW, stride=1, padding=_WINDOW // 2, count_include_pad=False)[0].numpy()
        settled = smooth + detail * (power / (power + NOISE**2))[..., None]
        kept = slice(factor * (first - top), factor * (last - top))
        changed[factor * first : factor * last] = settled[kept].round().clip(0, 255).astype(np.uint8)
    return changed


def block_means(enlarged: NDArray[np.uint8], height: int) -> NDArray[np.float32]:
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
