"""Colors for the hidden pixels of transparent images, so that none of them bleeds into visible pixels."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.images.alpha import has_alpha


def visible_colors(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colors of pixels (H, W, C) as RGB (H, W, 3) in which no hidden color is left.

    A hidden pixel gets the mean color of the visible ones around it, from the nearest scale that has any (Gortler et
    al. 1996, section 3.4). A pixel that is more transparent than its neighbors gets it in part: its own color is stored
    with few levels or none. Opaque pixels keep their colors. An image without a visible pixel keeps all colors."""
    colors = pixels[..., :-1] if has_alpha(pixels) else pixels
    colors = colors.repeat(3, axis=2) if colors.shape[2] == 1 else colors
    alpha = pixels[..., -1]
    if not has_alpha(pixels) or alpha.min() == 255 or alpha.max() == 0:
        return np.ascontiguousarray(colors)
    opacity = torch.from_numpy(alpha.astype(np.float32) / 255)[None, None]
    values = torch.from_numpy(np.ascontiguousarray(colors.transpose(2, 0, 1)).astype(np.float32))[None]
    filled = _pull_push(values, opacity)[0].permute(1, 2, 0).numpy()
    return np.where(alpha[..., None] == 255, colors, filled.round().clip(0, 255).astype(np.uint8))


def _pull_push(colors: torch.Tensor, opacity: torch.Tensor) -> torch.Tensor:
    """Return colors (1, 3, H, W) in which those of transparent pixels are replaced by their visible surroundings."""
    height, width = opacity.shape[-2:]
    if height == width == 1:
        return colors
    weight = F.avg_pool2d(opacity, 2, ceil_mode=True)
    coarse = F.avg_pool2d(colors * opacity, 2, ceil_mode=True) / weight.clamp(min=1e-12)
    coarse = _pull_push(coarse, (4 * weight).clamp(max=1))  # one visible pixel of four is enough
    around = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]
    own = opacity / F.max_pool2d(opacity, 3, stride=1, padding=1).clamp(min=1e-12)
    return around.lerp_(colors, own)
