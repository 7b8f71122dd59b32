"""Latents to uint8 pixels: whole, or in tiles that are joined without seams."""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.diffusion.tiles import Tiling

Heartbeat = Callable[[], None]
"""Called after each part of long work, so that the run's watchdog does not take it for a standstill."""

UPSCALE_FACTOR: Final = 4
"""The factor of the upscaling networks: a latent per source pixel, decoded to 4x4 pixels."""

MAX_BAND_WIDTH: Final = 16_384
"""The widest latents that are decoded by rows of tiles; wider ones are decoded by columns."""


def no_heartbeat() -> None:
    """A heartbeat that nobody listens to."""


def to_levels(pixels: Tensor) -> NDArray[np.uint8]:
    """Return pixels (3, H, W) in [-1, 1], clipped there, as uint8 (H, W, 3)."""
    levels = (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().cpu().numpy()


def decode_tiled(
    decode: Callable[[Tensor], Tensor], latents: Tensor, tiling: Tiling, heartbeat: Heartbeat = no_heartbeat
) -> NDArray[np.uint8]:
    """Return the image of latents (C, h, w), decoded tile by tile: uint8 (4 h, 4 w, 3).

    `heartbeat` is called after each tile. Memory: the image, and one row of tiles in float32; of latents wider than
    MAX_BAND_WIDTH, one column of tiles."""
    if tiling.width > MAX_BAND_WIDTH and tiling.width > tiling.height:
        image = _decode_bands(_transposed(decode), latents.transpose(1, 2), tiling.transposed(), heartbeat)
        return np.ascontiguousarray(image.transpose(1, 0, 2))
    return _decode_bands(decode, latents, tiling, heartbeat)


def _transposed(decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a decoder of transposed latents to transposed pixels."""
    return lambda latents: decode(latents.transpose(2, 3)).transpose(2, 3)


def _decode_bands(
    decode: Callable[[Tensor], Tensor], latents: Tensor, tiling: Tiling, heartbeat: Heartbeat
) -> NDArray[np.uint8]:
    factor = UPSCALE_FACTOR
    rows, columns = tiling.weights(factor)
    image = np.empty((factor * tiling.height, factor * tiling.width, 3), np.uint8)
    band_height, tile_width = factor * tiling.tile_height, factor * tiling.tile_width
    band = torch.zeros(3, band_height, factor * tiling.width)
    for row, top in enumerate(tiling.tops):
        for column, left in enumerate(tiling.lefts):
            pixels = decode(tiling.cut(latents, row * len(tiling.lefts) + column)[None])[0].cpu()
            target = band[:, :, factor * left : factor * left + tile_width]
            target.addcmul_(rows[row][:, None] * columns[column], pixels)
            heartbeat()
        final = factor * (tiling.tops[row + 1] - top) if row + 1 < len(tiling.tops) else band_height
        image[factor * top : factor * top + final] = to_levels(band[:, :final])
        band = torch.cat([band[:, final:], torch.zeros(3, final, band.shape[2])], dim=1)
    return image
