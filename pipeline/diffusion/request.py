"""The inputs of one row's denoising."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.table import SamplerTable
from pipeline.diffusion.tiles import Tiling

Result = tuple[Hashable, Tensor | Exception]
"""A request's key, and its latents (C, h, w) in float32 on the engine's device, or the reason why there are none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KnownLatents:
    """Latents that inpainting restores after each step, for a network that was not trained for it.

    (Lugmayr et al. 2022, section 4.1)"""

    latents: Tensor  # (C, h, w), clean
    noise: Tensor  # (C, h, w), the first noise: it takes the clean latents to each noise level
    mask: Tensor  # (1, h, w), 1 where latents are generated, 0 where they are known


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DenoisingRequest:
    """The inputs of one row's denoising.

    ValueError if the row is guided and its negative prompt's embeddings are missing or of another shape."""

    key: Hashable
    table: SamplerTable
    latents: Tensor  # (C, h, w), float32 on the CPU, at the table's first noise level
    generator: torch.Generator
    """The row's own generator, on the CPU; fresh noise is drawn from it as (1, C, h, w)."""
    prompt_embeds: Tensor  # (T, D)
    negative_prompt_embeds: Tensor | None  # (T, D); None where the row is not guided
    guidance: Guidance
    extra_channels: Tensor | None = None  # (C2, h, w), concatenated behind the latents in the network's input
    class_label: int | None = None
    known: KnownLatents | None = None
    tiling: Tiling | None = None
    """The tiles of latents that are larger than the network takes; not together with `known`."""

    def __post_init__(self) -> None:
        if self.negative_prompt_embeds is None:
            if any(scale != 1 for scale in self.guidance.scales(len(self.table))):
                raise ValueError(f"row {self.key!r} is guided but has no negative prompt's embeddings")
        elif self.negative_prompt_embeds.shape != self.prompt_embeds.shape:
            negative, positive = tuple(self.negative_prompt_embeds.shape), tuple(self.prompt_embeds.shape)
            raise ValueError(
                f"row {self.key!r}: its negative prompt's embeddings are {negative}, its prompt's {positive}"
            )

    @property
    def group(self) -> Hashable:
        """The shapes of the network's inputs: requests of one group can share calls."""
        extra = None if self.extra_channels is None else self.extra_channels.shape[0]
        return (self.latents.shape, self.prompt_embeds.shape, extra, self.class_label is None)
