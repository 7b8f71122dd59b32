"""Transparency of decoded pixels (H, W, C): C is 2 (gray and alpha) or 4 (RGBA) with alpha, 1 or 3 without."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def has_alpha(pixels: NDArray[np.uint8]) -> bool:
    """Return True if pixels (H, W, C) have an alpha channel."""
    return pixels.shape[2] in (2, 4)


def flatten(pixels: NDArray[np.uint8], background: int = 255) -> NDArray[np.uint8]:
    """Return pixels (H, W, C) as RGB (H, W, 3), blended over a gray of level `background` where they have alpha."""
    if pixels.shape[2] == 3:
        return pixels
    if pixels.shape[2] == 1:
        return pixels.repeat(3, axis=2)
    layer = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGBA")
    base = Image.new("RGBA", layer.size, (background, background, background, 255))
    return np.asarray(Image.alpha_composite(base, layer).convert("RGB"), np.uint8)
