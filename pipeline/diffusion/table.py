"""The form that every sampler takes: a small float64 table, and nothing else that depends on the sampler.

A row's state is two registers, `x` (the latents at which the network is evaluated next) and `anchor` (carried from one
evaluation to the next), and the last five kept predictions p0 (newest) to p4. One evaluation:

    model_output = network(input_scale * x, timestep)
    p0           = skip * x + out * model_output            (clipped where the schedule says so)
    x, anchor    = W @ (x, anchor, model_output, p0, ..., p4, noise)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

TERMS: Final = ("x", "anchor", "model_output", "p0", "p1", "p2", "p3", "p4", "noise")
HISTORY: Final = 5

Weights = dict[str, float]
"""Weights of TERMS by name; what is not named is zero."""

Level = tuple[float, float]
"""How much of the clean latents and how much noise is in `x`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of the network and what becomes of it."""

    timestep: float
    level: Level
    skip: float
    out: float
    x: Weights
    anchor: Weights
    input_scale: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class SamplerTable:
    """A sampler's whole run: tensors in float64, one row an evaluation.

    The first latents are `start_signal * image_latents + start_noise * noise`; `start_signal` is 0 for text to image.
    """

    timesteps: Tensor  # (n,)
    input_scale: Tensor  # (n,)
    prediction: Tensor  # (n, 2): skip and out
    weights: Tensor  # (n, 2, len(TERMS)): of x and of anchor
    levels: Tensor  # (n, 2): weights of clean latents and of noise in the x that is evaluated
    start_signal: float
    start_noise: float
    clip: float
    """Kept predictions are clamped to [-clip, clip]; infinite where they are not."""

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def draws_noise(self) -> list[bool]:
        """Which evaluations need fresh noise."""
        return self.weights[:, :, TERMS.index("noise")].any(1).tolist()


def table_of(
    evaluations: list[Evaluation], *, start_noise: float | None = None, clip: float = float("inf")
) -> SamplerTable:
    """The evaluations' numbers as tensors; `start_noise` is for a start from noise alone."""
    signal, deviation = evaluations[0].level if start_noise is None else (0.0, start_noise)
    return SamplerTable(
        timesteps=_column(row.timestep for row in evaluations),
        input_scale=_column(row.input_scale for row in evaluations),
        prediction=torch.tensor([(row.skip, row.out) for row in evaluations], dtype=torch.float64),
        weights=torch.tensor(
            [[[weights.get(term, 0.0) for term in TERMS] for weights in (row.x, row.anchor)] for row in evaluations],
            dtype=torch.float64,
        ),
        levels=torch.tensor([row.level for row in evaluations], dtype=torch.float64),
        start_signal=signal,
        start_noise=deviation,
        clip=clip,
    )


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
