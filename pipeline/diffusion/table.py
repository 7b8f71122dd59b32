"""The sampler table: the form that every sampler takes.

A row's state holds `x` (the latents at which the network is evaluated next), `anchor` (latents carried from one
evaluation to the next), and the last predictions p0 (newest) to p12: denoised latents,
or what a sampler's c_skip and c_out make of them. One evaluation computes

    model_output = network(c_in * x, timestep)
    p0           = c_skip * x + c_out * model_output        (clipped or thresholded where the schedule says so)
    x, anchor    = W @ (x, anchor, model_output, p0, ..., p12, noise)

The names c_skip, c_out and c_in are those of Karras et al. 2022, eq. 7. `diffusion/step.py` applies a table.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

HISTORY: Final = 13
"""Denoised predictions that an update can read; PNDM reads the first of its Runge-Kutta start last."""
TERMS: Final = ("x", "anchor", "model_output", *(f"p{age}" for age in range(HISTORY)), "noise")

Weights = dict[str, float]
"""Weights of TERMS by name; a term that is not named has weight zero."""

Level = tuple[float, float]
"""Weights of the clean latents and of the noise in `x`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of the network and the update that follows it."""

    timestep: float
    level: Level
    c_skip: float
    c_out: float
    x: Weights
    anchor: Weights
    c_in: float = 1.0
    draws_noise: bool = False
    """Whether fresh noise is drawn even where its weight is zero, so that later noise is diffusers'."""


@dataclass(frozen=True, slots=True)
class Thresholding:
    """Dynamic thresholding of a row's denoised predictions (Saharia et al. 2022, section 2.3)."""

    ratio: float
    """The quantile of the absolute values that becomes the threshold."""
    highest: float
    """The largest threshold; the smallest is 1."""


@dataclass(frozen=True, slots=True, eq=False)
class SamplerTable:
    """All evaluations of a sampler's run: float64 tensors with one row per evaluation.

    The first latents are `start_signal * image_latents + start_noise * noise`; `start_signal` is 0 for text to image.
    """

    timesteps: Tensor  # (n,)
    c_in: Tensor  # (n,)
    c_skip: Tensor  # (n,)
    c_out: Tensor  # (n,)
    weights: Tensor  # (n, 2, len(TERMS)): the weights of x and of anchor
    levels: Tensor  # (n, 2): the weights of clean latents and of noise in the x that is evaluated
    start_signal: float
    start_noise: float
    clip: float
    """Denoised predictions are clamped to [-clip, clip]; infinite where they are not clamped."""
    draws_noise: tuple[bool, ...]
    """For each evaluation, whether its update needs fresh noise."""
    thresholding: Thresholding | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    def part(self, start: int, stop: int) -> "SamplerTable":
        """Return evaluations `start` to `stop`. A sampler with a history loses it between two parts."""
        by_evaluation = ("timesteps", "c_in", "c_skip", "c_out", "weights", "levels", "draws_noise")
        return replace(self, **{name: getattr(self, name)[start:stop] for name in by_evaluation})

    @property
    def uses_anchor(self) -> bool:
        """Whether any update reads the anchor."""
        return bool(self.weights[:, :, TERMS.index("anchor")].any())

    @property
    def history(self) -> int:
        """The number of older predictions (p1, p2, ...) that the updates read."""
        first = TERMS.index("p1")
        used = self.weights[:, :, first : first + HISTORY - 1].any(0).any(0).tolist()
        return max((age for age, is_used in enumerate(used, 1) if is_used), default=0)


def table_of(
    evaluations: list[Evaluation],
    *,
    start_noise: float | None = None,
    clip: float = float("inf"),
    thresholding: Thresholding | None = None,
) -> SamplerTable:
    """Return the evaluations as one table.

    `start_noise` is the deviation of the first latents of a start from noise alone; with None the first latents are
    image latents at the first evaluation's level."""
    signal, deviation = evaluations[0].level if start_noise is None else (0.0, start_noise)
    return SamplerTable(
        timesteps=_column(row.timestep for row in evaluations),
        c_in=_column(row.c_in for row in evaluations),
        c_skip=_column(row.c_skip for row in evaluations),
        c_out=_column(row.c_out for row in evaluations),
        weights=torch.tensor(
            [[[weights.get(term, 0.0) for term in TERMS] for weights in (row.x, row.anchor)] for row in evaluations],
            dtype=torch.float64,
        ),
        levels=torch.tensor([row.level for row in evaluations], dtype=torch.float64),
        start_signal=signal,
        start_noise=deviation,
        clip=clip,
        draws_noise=tuple(
            row.draws_noise or bool(row.x.get("noise") or row.anchor.get("noise")) for row in evaluations
        ),
        thresholding=thresholding,
    )


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
