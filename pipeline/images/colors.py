"""Color correction of upscaled images: low frequencies follow the source, and the networks' noise is filtered out."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.images.resize import resize

_MAX_ITERATIONS: Final = 12
"""Each iteration leaves two fifths of the difference, or more where values are clipped at black or white."""
_TOLERANCE: Final = 1.0
"""The difference of a block's mean to its source pixel that is accepted, in levels of 255."""

_NOISE_LEVEL: Final = 8.0
"""Standard deviation of the error of autoencoder and U-Net, in levels of 255: weaker detail is mostly noise."""

_STRIP_ROWS: Final = 64
"""Source rows that are processed at once, to bound memory."""
_MAX_STRIP_WIDTH: Final = 16_384
"""Width of the widest source that is processed in horizontal strips, in pixels; wider ones in vertical strips."""
_MARGIN: Final = 3
"""Source rows above and below a strip that bicubic enlarging and the power window read."""
_WINDOW: Final = 5
"""Side of the square window in which the power of detail is measured, in pixels."""


def correct_colors(
    enlarged: NDArray[np.uint8], source: NDArray[np.uint8], heartbeat: Callable[[], None] = lambda: None
) -> NDArray[np.uint8]:
    """Correct `enlarged` (f H, f W, 3) so that the means of its f x f blocks match `source` (H, W, 3).

    Detail that is weaker than the networks' noise is replaced by the bicubically enlarged source. `heartbeat` is called
    once per iteration. Memory: a float32 difference of the source's size, and a strip of the enlarged image."""
    if source.shape[1] > max(_MAX_STRIP_WIDTH, source.shape[0]):
        transposed = correct_colors(enlarged.transpose(1, 0, 2), source.transpose(1, 0, 2), heartbeat)
        return np.ascontiguousarray(transposed.transpose(1, 0, 2))
    projected = _back_project(enlarged, source, heartbeat)
    return _back_project(_filter_noise(projected, source), source, heartbeat)


def block_means(enlarged: NDArray[np.uint8], height: int) -> NDArray[np.float32]:
    """Return the means of f x f blocks of uint8 (f H, f W, 3): float32 (H, W, 3)."""
    factor = enlarged.shape[0] // height
    width = enlarged.shape[1] // factor
    means = np.empty((height, width, 3), np.float32)
    for first, last in _strips(height):
        blocks = enlarged[factor * first : factor * last].reshape(last - first, factor, width, factor, 3)
        means[first:last] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return means


def _back_project(
    enlarged: NDArray[np.uint8], source: NDArray[np.uint8], heartbeat: Callable[[], None]
) -> NDArray[np.uint8]:
    """Subtract the enlarged difference of block means and source until it is small (Irani and Peleg 1991)."""
    for _ in range(_MAX_ITERATIONS):
        difference = block_means(enlarged, source.shape[0]) - source
        if max(difference.max(), -difference.min()) <= _TOLERANCE:
            break
        enlarged = _subtract_enlarged(enlarged, torch.from_numpy(difference.transpose(2, 0, 1)))
        heartbeat()
    return enlarged


def _filter_noise(enlarged: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Weight detail by its power over the sum of its power and the noise's: a Wiener filter.

    Detail is the difference to the bicubically enlarged source; its power is measured around each pixel (Lee 1980)."""
    height = source.shape[0]
    factor = enlarged.shape[0] // height
    filtered = np.empty_like(enlarged)
    for first, last in _strips(height):
        top, bottom = max(first - _MARGIN, 0), min(last + _MARGIN, height)
        part = enlarged[factor * top : factor * bottom]
        smooth = resize(source[top:bottom], part.shape[1], part.shape[0], "bicubic").astype(np.float32)
        detail = part - smooth
        power = torch.from_numpy(np.square(detail).mean(2))[None]
        power = F.avg_pool2d(power, _WINDOW, stride=1, padding=_WINDOW // 2, count_include_pad=False)[0].numpy()
        weighted = smooth + detail * (power / (power + _NOISE_LEVEL**2))[..., None]
        inner = slice(factor * (first - top), factor * (last - top))
        filtered[factor * first : factor * last] = weighted[inner].round().clip(0, 255).astype(np.uint8)
    return filtered


def _subtract_enlarged(enlarged: NDArray[np.uint8], difference: torch.Tensor) -> NDArray[np.uint8]:
    """Subtract the bicubically enlarged `difference` (3, H, W) from `enlarged` (f H, f W, 3)."""
    height = difference.shape[1]
    factor = enlarged.shape[0] // height
    result = np.empty_like(enlarged)
    for first, last in _strips(height):
        top, bottom = max(first - _MARGIN, 0), min(last + _MARGIN, height)
        strip = F.interpolate(difference[None, :, top:bottom], scale_factor=factor, mode="bicubic")[0]
        strip = strip[:, factor * (first - top) : factor * (last - top)].permute(1, 2, 0).numpy()
        rows = slice(factor * first, factor * last)
        result[rows] = (enlarged[rows] - strip).round().clip(0, 255).astype(np.uint8)
    return result


def _strips(height: int) -> Iterator[tuple[int, int]]:
    for first in range(0, height, _STRIP_ROWS):
        yield first, min(first + _STRIP_ROWS, height)
