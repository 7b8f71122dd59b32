"""The inputs of one row's denoising."""

from collections.abc import Hashable, Mapping
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
class Conditioning:
    """The conditions of one evaluation of the network."""

    inputs: Mapping[str, Tensor]
    """The network's keyword arguments, each without the batch dimension: encoder_hidden_states (T, D), and others."""
    extra_channels: Tensor | None = None  # (C2, h, w), concatenated behind the latents in the network's input

    @property
    def shapes(self) -> Hashable:
        """The names and shapes of all that is given: evaluations of the same shapes can share calls."""
        extra = None if self.extra_channels is None else self.extra_channels.shape[0]
        return extra, tuple((name, tuple(values.shape)) for name, values in sorted(self.inputs.items()))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DenoisingRequest:
    """The inputs of one row's denoising.

    ValueError if the row is guided and lacks the conditions of a side, or has them in another shape."""

    key: Hashable
    table: SamplerTable
    latents: Tensor  # (C, h, w), float32 on the CPU, at the table's first noise level
    generator: torch.Generator
    """The row's own generator, on the CPU; fresh noise is drawn from it as (1, C, h, w)."""
    conditions: tuple[Conditioning, ...]
    """One per side of the guidance (see `Guidance.sides`), the prompt's first; only this one if the row is unguided."""
    guidance: Guidance
    known: KnownLatents | None = None
    merged: Hashable = None
    """What is merged into the network's weights for this row; rows with the same can share calls."""
    then: "DenoisingRequest | None" = None
    """The request that goes on with this one's latents, with a network or a sampler of its own; its `latents` have
    their shape, and its key counts for nothing. Not together with `tiling`."""
    tiling: Tiling | None = None
    """The tiles of latents that are larger than the network takes; not together with `known`."""

    def __post_init__(self) -> None:
        guided = any(scale != 1 for scale in self.guidance.scales(len(self.table)))
        needed = self.guidance.sides if guided else 1
        if len(self.conditions) < needed:
            raise ValueError(f"row {self.key!r} has the conditions of {len(self.conditions)} sides; it needs {needed}")
        if len({each.shapes for each in self.conditions}) > 1:
            shapes = " and ".join(str(each.shapes) for each in self.conditions)
            raise ValueError(f"row {self.key!r}: the conditions of its sides differ in shape: {shapes}")

    @property
    def group(self) -> Hashable:
        """The shapes of the network's inputs, and its weights: requests of one group can share calls."""
        return self.latents.shape, self.conditions[0].shapes, self.guidance.sides, self.merged
