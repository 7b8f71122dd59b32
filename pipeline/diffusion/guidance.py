"""Classifier-free guidance (Ho and Salimans 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """The guidance of one row. A `scale` of 1.0 or less is off, as in diffusers, and costs no second evaluation."""

    scale: float = 1.0
    rescale: float = 0.0
    """How far the guided prediction's deviation is moved to the conditional one's (Lin et al. 2023, eq. 15 and 16)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The part of the evaluations, from the first (0) to the last (1), that is guided (Kynkäänniemi et al. 2024)."""

    @property
    def is_on(self) -> bool:
        return self.scale > 1.0

    def scale_at(self, index: int, count: int) -> float:
        """Return the scale in force at evaluation `index` of `count`; 1.0 where guidance is off."""
        first, last = self.interval
        return self.scale if self.is_on and first * count <= index < last * count else 1.0

    def scales(self, count: int) -> list[float]:
        """Return the scale in force at each of `count` evaluations."""
        return [self.scale_at(index, count) for index in range(count)]


def apply_guidance(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Return the guided predictions (B, C, h, w) for scales (B,); at 1.0 the conditional one, bit for bit."""
    scale = scale[:, None, None, None]
    guided = unconditional + scale * (conditional - unconditional)
    return torch.where(scale == 1, conditional, guided)


def rescale_guidance(guided: Tensor, conditional: Tensor, rescale: float) -> Tensor:
    """Return one row's guided prediction (C, h, w), its deviation moved to the conditional one's by `rescale`."""
    rescaled = guided * (conditional.std() / guided.std())
    return rescale * rescaled + (1 - rescale) * guided
