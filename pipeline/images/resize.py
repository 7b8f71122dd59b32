"""Resizing uint8 pixels, and conversion to and from float pixels."""

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Filter = Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
_LONG: Final = 8
"""How many times as long as wide a picture is looked at where only its middle square is wanted."""
_FILTERS: Final = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


def resize(pixels: NDArray[np.uint8], width: int, height: int, how: Filter = "lanczos") -> NDArray[np.uint8]:
    """uint8 (H, W, 3) or (H, W), stretched to the size."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), _FILTERS[how]), np.uint8)


def resize_to_cover(pixels: NDArray[np.uint8], width: int, height: int, how: Filter = "lanczos") -> NDArray[np.uint8]:
    """Scaled with its proportions kept until it covers the size, and cut about its center."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (width, height), _FILTERS[how]), np.uint8)


def center_square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scaled until its shorter side is `side`, and cut to the square about its center, as CLIP is shown pictures."""
    shorter = min(pixels.shape[:2])
    most = _LONG * shorter  # of a very thin picture: scaled whole it would be very large
    top, left = (max(length - most, 0) // 2 for length in pixels.shape[:2])
    pixels = pixels[top : top + most, left : left + most]
    height, width = pixels.shape[:2]
    scaled = resize(pixels, side * width // shorter, side * height // shorter, "bicubic")
    top, left = (scaled.shape[0] - side) // 2, (scaled.shape[1] - side) // 2
    return scaled[top : top + side, left : left + side]


def to_gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma (H, W) of uint8 RGB (H, W, 3), by the weights of ITU-R BT.601."""
    return np.asarray(Image.fromarray(pixels).convert("L"), np.uint8)


def to_float(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (H, W, 3) -> float32 (3, H, W) in [-1, 1]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1))


def bytes_of(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 (3, H, W) in [-1, 1], clipped there -> uint8 (H, W, 3); rounded as diffusers rounds (half to even)."""
    levels = np.clip(pixels.astype(np.float32) / np.float32(2) + np.float32(0.5), 0, 1) * np.float32(255)
    return np.ascontiguousarray(levels.round().astype(np.uint8).transpose(1, 2, 0))
