"""Masks: which pixels a row lets be painted, how far the new ones reach, and the part of the picture worked on."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.images.resize import resize

WHITE: Final = 128
"""The least level of a mask that counts as white, as in diffusers."""

CONTEXT: Final = 0.5
"""How much of the hole's width and height is worked on beside it, both sides together, where there is room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropRegion:
    """A rectangle of a picture, and the size at which the network works on it; all in pixels."""

    left: int
    top: int
    width: int
    height: int
    canvas_width: int
    canvas_height: int
    scaled: bool
    """The rectangle is shrunk to the canvas; else the canvas repeats its right and lower edge."""

    def crop(self, values: NDArray) -> NDArray:
        """The rectangle of pixels (H, W, 3) or of a mask (H, W)."""
        return values[self.top : self.top + self.height, self.left : self.left + self.width]

    def to_canvas(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) of the whole picture to what the network is shown."""
        cut = self.crop(pixels)
        if self.scaled:
            return resize(cut, self.canvas_width, self.canvas_height).copy()  # torch wants to own it
        padding = ((0, self.canvas_height - self.height), (0, self.canvas_width - self.width), (0, 0))
        return np.pad(cut, padding, mode="edge")

    def mask_to_canvas(self, painted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool (H, W) of the whole picture to the canvas; a pixel that is painted in part is painted."""
        cut = self.crop(painted)
        if self.scaled:
            levels = torch.from_numpy(cut.astype(np.float32))[None, None]
            return F.adaptive_max_pool2d(levels, (self.canvas_height, self.canvas_width))[0, 0].numpy() > 0
        padding = ((0, self.canvas_height - self.height), (0, self.canvas_width - self.width))
        return np.pad(cut, padding, mode="edge")

    def from_canvas(self, canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A canvas's picture at the rectangle's size."""
        if self.scaled:
            return resize(canvas, self.width, self.height)
        return canvas[: self.height, : self.width]


def binarize_mask(mask: NDArray[np.uint8], width: int, height: int, *, inverted: bool) -> NDArray[np.bool_]:
    """A mask (H', W') of any size as bool (height, width): what is to be painted."""
    chosen = resize(mask, width, height, "bilinear") >= WHITE
    return ~chosen if inverted else chosen


def compute_opacity(chosen: NDArray[np.bool_], *, dilate: int, feather: int) -> NDArray[np.float32]:
    """How much of each pixel is the new picture's, (H, W) in [0, 1].

    1 up to `dilate` pixels around what is chosen; from there it falls to 0 within the next `feather` (rounded up to
    even) pixels; exactly 0 beyond."""
    full = _grown(torch.from_numpy(chosen.astype(np.float32))[None, None], dilate)
    if not feather:
        return full[0, 0].numpy()
    radius = (feather + 1) // 2
    levels = _grown(full, radius)
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        levels = F.avg_pool2d(levels, kernel, stride=1, padding=padding, count_include_pad=False)
    return torch.where(full > 0, 1.0, levels)[0, 0].numpy()


def find_crop_region(painted: NDArray[np.bool_], native: tuple[int, int], multiple: int) -> CropRegion:
    """Where to work: the whole picture if it is no larger than `native` (width, height), else around what is painted.

    The canvas is a multiple of `multiple` and, in a large picture, as near to the native size as the hole allows."""
    height, width = painted.shape
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))
    whole = width <= native[0] and height <= native[1]
    left, across = _span(columns, width, width if whole else native[0])
    top, down = _span(rows, height, height if whole else native[1])
    scale = max(across / native[0], down / native[1])
    if scale <= 1:
        sizes = [-(-side // multiple) * multiple for side in (across, down)]
    else:
        sizes = [max(round(side / scale / multiple), 1) * multiple for side in (across, down)]
    return CropRegion(
        left=left,
        top=top,
        width=across,
        height=down,
        canvas_width=sizes[0],
        canvas_height=sizes[1],
        scaled=scale > 1,
    )


def blend(source: NDArray[np.uint8], made: NDArray[np.uint8], part: NDArray[np.float32]) -> NDArray[np.uint8]:
    """`made` over `source`, (H, W, 3) each, by `part` (H, W); where it is 0 the source's own bytes."""
    mixed = source + part[..., None] * (made.astype(np.float32) - source)
    return np.where(part[..., None] > 0, mixed.round().clip(0, 255).astype(np.uint8), source)


def _span(painted: NDArray[np.intp], length: int, least: int) -> tuple[int, int]:
    """First pixel and length of the stretch about the `painted` ones, with context, inside of `length`."""
    first, last = int(painted[0]), int(painted[-1]) + 1
    span = min(max(least, round((last - first) * (1 + CONTEXT))), length)
    return min(max((first + last - span) // 2, 0), length - span), span


def _grown(levels: torch.Tensor, pixels: int) -> torch.Tensor:
    """The largest level within `pixels` on each axis."""
    if not pixels:
        return levels
    size = 2 * pixels + 1
    across = F.max_pool2d(levels, (1, size), stride=1, padding=(0, pixels))
    return F.max_pool2d(across, (size, 1), stride=1, padding=(pixels, 0))
