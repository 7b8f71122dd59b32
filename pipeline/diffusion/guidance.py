"""Classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Sequence
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
    image_scale: float | None = None
    """The second scale, for the image (Brooks et al. 2023, eq. 3); None for networks that are guided by text alone.

    Guidance is off, as in diffusers, where it is below 1.0."""

    @property
    def is_on(self) -> bool:
        return self.scale > 1.0 and (self.image_scale is None or self.image_scale >= 1.0)

    @property
    def sides(self) -> int:
        """The number of evaluations of a guided step: of the prompt and the negative prompt.

        With an image scale: of prompt and image, of negative prompt and image, of the negative prompt without image."""
        return 2 if self.image_scale is None else 3

    def scale_at(self, index: int, count: int) -> float:
        """Return the scale in force at evaluation `index` of `count`; 1.0 where guidance is off."""
        first, last = self.interval
        return self.scale if self.is_on and first * count <= index < last * count else 1.0

    def scales(self, count: int) -> list[float]:
        """Return the scale in force at each of `count` evaluations."""
        return [self.scale_at(index, count) for index in range(count)]


def apply_guidance(sides: Sequence[Tensor], scale: Tensor, image_scale: Tensor) -> Tensor:
    """Return the guided predictions (B, C, h, w) of two or three `sides` in the order of `Guidance.sides`.

    The scales are (B,). Where `scale` is 1.0, the result is the first side, bit for bit; two sides have no image
    scale."""
    scale, image_scale = scale[:, None, None, None], image_scale[:, None, None, None]
    conditional, unconditional, *without_image = sides
    guided = unconditional + scale * (conditional - unconditional)
    if without_image:
        nothing = without_image[0]
        guided = nothing + scale * (conditional - unconditional) + image_scale * (unconditional - nothing)
    return torch.where(scale == 1, conditional, guided)


def rescale_guidance(guided: Tensor, conditional: Tensor, rescale: float) -> Tensor:
    """Return one row's guided prediction (C, h, w), its deviation moved to the conditional one's by `rescale`."""
    rescaled = guided * (conditional.std() / guided.std())
    return rescale * rescaled + (1 - rescale) * guided
