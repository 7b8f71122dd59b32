"""Classifier-free guidance: how far a prediction moves from the unconditional one."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """One row's guidance; `scale` 1.0 is off and costs no second evaluation (Ho and Salimans 2022)."""

    scale: float = 1.0
    rescale: float = 0.0
    """How much of the conditional prediction's deviation is given back (Lin et al. 2023, eq. 15 and 16)."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The part of the evaluations, from the first (0) to the last (1), in which it acts (Kynkäänniemi et al. 2024)."""

    @property
    def guides(self) -> bool:
        return self.scale != 1.0

    def scale_at(self, index: int, count: int) -> float:
        """The scale in force at evaluation `index` of `count`."""
        first, last = self.interval
        return self.scale if first * count <= index < last * count else 1.0

    def scales(self, count: int) -> list[float]:
        """The scale in force at each of `count` evaluations; where it is 1.0 there is no second evaluation."""
        return [self.scale_at(index, count) for index in range(count)]


def guided(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """Predictions (B, C, h, w) moved apart by each row's own scale (B,); at 1.0 the conditional one, bit for bit."""
    scale = scale[:, None, None, None]
    moved = unconditional + scale * (conditional - unconditional)
    return torch.where(scale == 1, conditional, moved)


def rescaled(prediction: Tensor, conditional: Tensor, rescale: float) -> Tensor:
    """One row's guided prediction (C, h, w) with its standard deviation drawn to the conditional one's."""
    level = prediction * (conditional.std() / prediction.std())
    return rescale * level + (1 - rescale) * prediction
