"""Inpainting masks: binarization, opacity, and the region of the image that the network works on."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.images.alpha import flatten, has_alpha
from pipeline.images.resize import resize, to_gray

_WHITE_LEVEL: Final = 128
"""The lowest level of a mask that counts as white, as in diffusers."""

_CONTEXT: Final = 0.5
"""Context around the masked area, both sides together, as a fraction of its width and height."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropRegion:
    """A rectangle of an image, and the canvas on which the network works on it. All sizes are in pixels."""

    left: int
    top: int
    width: int
    height: int
    canvas_width: int
    canvas_height: int
    scaled: bool
    """True: the rectangle is scaled down to the canvas. False: its right and lower edges are repeated to fill it."""

    def crop(self, values: NDArray) -> NDArray:
        """Return a view of the rectangle in pixels (H, W, C) or a mask (H, W) of the whole image."""
        return values[self.top : self.top + self.height, self.left : self.left + self.width]

    def to_canvas(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the canvas, uint8 (canvas_height, canvas_width, 3), for an image (H, W, C), on white."""
        cropped = flatten(self.crop(pixels))
        if self.scaled:
            return resize(cropped, self.canvas_width, self.canvas_height).copy()  # torch needs a writable array
        padding = ((0, self.canvas_height - self.height), (0, self.canvas_width - self.width), (0, 0))
        return np.pad(cropped, padding, mode="edge")

    def mask_to_canvas(self, masked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the canvas's mask for a mask (H, W); a canvas pixel is masked if any of its pixels is."""
        cropped = self.crop(masked)
        if self.scaled:
            levels = torch.from_numpy(cropped.astype(np.float32))[None, None]
            return F.adaptive_max_pool2d(levels, (self.canvas_height, self.canvas_width))[0, 0].numpy() > 0
        padding = ((0, self.canvas_height - self.height), (0, self.canvas_width - self.width))
        return np.pad(cropped, padding, mode="edge")

    def from_canvas(self, canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the rectangle's pixels, uint8 (height, width, 3), for a canvas."""
        if self.scaled:
            return resize(canvas, self.width, self.height)
        return canvas[: self.height, : self.width]


def binarize_mask(mask: NDArray[np.uint8], width: int, height: int, *, inverted: bool) -> NDArray[np.bool_]:
    """Resize a mask (H', W') and return bool (height, width): True where the image is to be repainted."""
    masked = resize(mask, width, height, "bilinear") >= _WHITE_LEVEL
    return ~masked if inverted else masked


def compute_opacity(masked: NDArray[np.bool_], *, dilate: int, feather: int) -> NDArray[np.float32]:
    """Return the opacity of the new image over the old one, float32 (H, W) in [0, 1].

    It is 1 up to `dilate` pixels around the masked area, falls to 0 within the next `feather` pixels (rounded up to
    even), and is exactly 0 beyond."""
    full = _dilate(torch.from_numpy(masked.astype(np.float32))[None, None], dilate)
    if not feather:
        return full[0, 0].numpy()
    radius = (feather + 1) // 2
    levels = _dilate(full, radius)
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        levels = F.avg_pool2d(levels, kernel, stride=1, padding=padding, count_include_pad=False)
    return torch.where(full > 0, 1.0, levels)[0, 0].numpy()


def find_crop_region(masked: NDArray[np.bool_], native_size: tuple[int, int], multiple: int) -> CropRegion:
    """Return the whole image if it is no larger than `native_size` (width, height), else a region around the mask.

    The canvas's sides are multiples of `multiple`. In a large image they are as close to the native size as the masked
    area allows."""
    height, width = masked.shape
    rows, columns = np.flatnonzero(masked.any(1)), np.flatnonzero(masked.any(0))
    native_width, native_height = native_size
    if width <= native_width and height <= native_height:
        left, region_width, top, region_height = 0, width, 0, height
    else:
        left, region_width = _span_with_context(columns, width, native_width)
        top, region_height = _span_with_context(rows, height, native_height)
    scale = max(region_width / native_width, region_height / native_height)
    if scale <= 1:
        sizes = [-(-side // multiple) * multiple for side in (region_width, region_height)]
    else:
        sizes = [max(round(side / scale / multiple), 1) * multiple for side in (region_width, region_height)]
    return CropRegion(
        left=left,
        top=top,
        width=region_width,
        height=region_height,
        canvas_width=sizes[0],
        canvas_height=sizes[1],
        scaled=scale > 1,
    )


def blend(source: NDArray[np.uint8], edited: NDArray[np.uint8], opacity: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blend `edited` (H, W, 3), which is opaque, over `source` (H, W, C) by `opacity` (H, W); return (H, W, C).

    Pixels with opacity 0 stay exactly as is. Where the source is transparent, colors have the weight of their alpha
    (Porter and Duff 1984, "over")."""
    layer = to_gray(edited)[..., None] if source.shape[2] < 3 else edited
    if has_alpha(source):
        alpha = opacity + (1 - opacity) * (source[..., -1] / np.float32(255))
        colors = _mix(source[..., :-1], layer, opacity / np.maximum(alpha, np.float32(1e-6)))
        mixed = np.concatenate([colors, 255 * alpha[..., None]], axis=2)
    else:
        mixed = _mix(source, layer, opacity)
    return np.where(opacity[..., None] > 0, mixed.round().clip(0, 255).astype(np.uint8), source)


def _mix(colors: NDArray[np.uint8], others: NDArray[np.uint8], share: NDArray[np.floating]) -> NDArray[np.floating]:
    """Blend colors (H, W, C) toward `others` by `share` (H, W)."""
    return colors + share[..., None] * (others.astype(np.float32) - colors)


def _span_with_context(masked: NDArray[np.intp], length: int, min_span: int) -> tuple[int, int]:
    """Return start and length of the span around the masked indices, with context, inside `length`."""
    first, last = int(masked[0]), int(masked[-1]) + 1
    span = min(max(min_span, round((last - first) * (1 + _CONTEXT))), length)
    return min(max((first + last - span) // 2, 0), length - span), span


def _dilate(levels: torch.Tensor, pixels: int) -> torch.Tensor:
    """Return the maximum within `pixels` along each axis."""
    if not pixels:
        return levels
    size = 2 * pixels + 1
    across = F.max_pool2d(levels, (1, size), stride=1, padding=(0, pixels))
    return F.max_pool2d(across, (size, 1), stride=1, padding=(pixels, 0))
