"""Tiles: latents of any size are cut into overlapping pieces of one size that add up without seams."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """The positions of the tiles of latents (C, h, w): evenly spaced, neighbors share at least the overlap."""

    height: int
    width: int
    tile_height: int
    tile_width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def of(cls, height: int, width: int, tile: int, overlap: int) -> Self:
        """Return a tiling with tiles of side `tile`, or the latents' shorter side, that share `overlap` or more."""
        return cls(
            height=height,
            width=width,
            tile_height=min(tile, height),
            tile_width=min(tile, width),
            tops=_starts(height, tile, overlap),
            lefts=_starts(width, tile, overlap),
        )

    def transposed(self) -> Self:
        """Return the tiling of transposed latents (C, w, h)."""
        return replace(
            self,
            height=self.width,
            width=self.height,
            tile_height=self.tile_width,
            tile_width=self.tile_height,
            tops=self.lefts,
            lefts=self.tops,
        )

    @property
    def count(self) -> int:
        return len(self.tops) * len(self.lefts)

    def cut(self, values: Tensor, index: int) -> Tensor:
        """Return a view of one tile (C, tile_height, tile_width) of values (C, height, width)."""
        row, column = divmod(index, len(self.lefts))
        top, left = self.tops[row], self.lefts[column]
        return values[:, top : top + self.tile_height, left : left + self.tile_width]

    def weights(self, factor: int = 1) -> tuple[list[Tensor], list[Tensor]]:
        """Return each tile row's weights down and each tile column's weights across, at `factor` times the size.

        A tile's weight is the product of both; the weights of all tiles add up to 1 at each position."""
        return (
            _weights([factor * top for top in self.tops], factor * self.tile_height, factor * self.height),
            _weights([factor * left for left in self.lefts], factor * self.tile_width, factor * self.width),
        )


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    if length <= tile:
        return (0,)
    count = -(-(length - overlap) // (tile - overlap))
    return tuple(index * (length - tile) // (count - 1) for index in range(count))


def _weights(starts: list[int], tile: int, length: int) -> list[Tensor]:
    """Return linear ramps over the overlaps, divided by their sum; (tile,) each.

    At its edge a tile sees padding instead of the image, so the outer quarter of an overlap is the neighbor's alone.
    """
    windows = [torch.ones(tile) for _ in starts]
    for (left, right), (before, after) in zip(pairwise(starts), pairwise(windows), strict=True):
        shared = left + tile - right
        edge = shared // 4
        ramp = ((torch.arange(1, shared + 1) - edge) / (shared - 2 * edge + 1)).clamp(0, 1)
        after[:shared] = torch.minimum(after[:shared], ramp)
        before[tile - shared :] = torch.minimum(before[tile - shared :], ramp.flip(0))
    total = torch.zeros(length)
    for start, window in zip(starts, windows, strict=True):
        total[start : start + tile] += window
    return [window / total[start : start + tile] for start, window in zip(starts, windows, strict=True)]
