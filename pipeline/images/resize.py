"""Resizing of uint8 pixels, and their conversion to gray and to float pixels."""

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Filter = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
_MAX_ASPECT_RATIO: Final = 8
"""`center_square` crops an image to this aspect ratio before it scales it."""
_FILTERS: Final = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


def resize(pixels: NDArray[np.uint8], width: int, height: int, how: Filter = "lanczos") -> NDArray[np.uint8]:
    """Resize uint8 (H, W, 3) or (H, W) to (height, width), without preserving the aspect ratio."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), _FILTERS[how]), np.uint8)


def resize_to_cover(pixels: NDArray[np.uint8], width: int, height: int, how: Filter = "lanczos") -> NDArray[np.uint8]:
    """Scale an image until it covers (height, width), preserving the aspect ratio, and crop it at its center."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height), _FILTERS[how]), np.uint8)


def center_square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale the shorter side to `side` and crop the center square, as CLIP's image processor does."""
    shorter = min(pixels.shape[:2])
    longest = _MAX_ASPECT_RATIO * shorter  # scaling a very thin image without cropping would take too much memory
    top, left = (max(length - longest, 0) // 2 for length in pixels.shape[:2])
    pixels = pixels[top : top + longest, left : left + longest]
    height, width = pixels.shape[:2]
    scaled = resize(pixels, side * width // shorter, side * height // shorter, "bicubic")
    top, left = (scaled.shape[0] - side) // 2, (scaled.shape[1] - side) // 2
    return scaled[top : top + side, left : left + side]


def to_gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert RGB (H, W, 3) to luma (H, W) with the weights of ITU-R BT.601."""
    return np.asarray(Image.fromarray(pixels).convert("L"), np.uint8)


def to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Convert uint8 (H, W, 3) to float32 (3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1))
