"""One sampler step: the one function that applies a sampler table, for rows in lanes and for tiled rows."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from pipeline.diffusion.guidance import Guidance
from pipeline.diffusion.table import HISTORY, TERMS, SamplerTable, Thresholding

_X, _ANCHOR = 0, len(TERMS)
TIMESTEP, C_IN, C_SKIP, C_OUT, _CLIP, GUIDANCE_SCALE, IMAGE_GUIDANCE_SCALE = range(2 * len(TERMS), 2 * len(TERMS) + 7)
COEFFICIENTS: Final = 2 * len(TERMS) + 7
"""Columns of a step's coefficients: the weights of x, the weights of anchor, then the seven above."""


class State(NamedTuple):
    """The state of B rows between two steps."""

    x: Tensor  # (B, C, h, w)
    anchor: Tensor | None  # (B, C, h, w); None where the tables never read it
    history: tuple[Tensor, ...]  # (B, C, h, w) each, the newest denoised prediction first


def coefficients_of(table: SamplerTable, guidance: Guidance) -> Tensor:
    """Return a table's steps as (n, COEFFICIENTS) in float32, with the guidance scales of each evaluation."""
    image_scale = 1.0 if guidance.image_scale is None else guidance.image_scale
    columns = [
        table.weights.flatten(1),
        table.timesteps[:, None],
        table.c_in[:, None],
        table.c_skip[:, None],
        table.c_out[:, None],
        torch.full((len(table), 1), table.clip, dtype=torch.float64),
        torch.tensor(guidance.scales(len(table)), dtype=torch.float64)[:, None],
        torch.full((len(table), 1), image_scale, dtype=torch.float64),
    ]
    return torch.cat(columns, dim=1).float()


def sampler_step(
    coefficients: Tensor,
    state: State,
    model_output: Tensor,
    noise: Tensor | None,
    thresholding: Sequence[Thresholding | None] = (),
) -> State:
    """Return the state after one step of each row.

    `coefficients` is (B, COEFFICIENTS); `model_output` and `noise` are (B, C, h, w), `noise` None where no row of the
    step needs it; `thresholding` is that of the rows in their order. All else is
    elementwise and in a fixed order, so a row's bits do not depend on B."""
    clip = per_row(coefficients[:, _CLIP])
    denoised = per_row(coefficients[:, C_SKIP]) * state.x + per_row(coefficients[:, C_OUT]) * model_output
    denoised = torch.minimum(torch.maximum(denoised, -clip), clip)
    for row, threshold in zip(denoised, thresholding, strict=False):
        if threshold is not None:
            row.copy_(_thresholded(row, threshold))
    older = [*state.history, *[None] * HISTORY][: HISTORY - 1]
    terms = (state.x, state.anchor, model_output, denoised, *older, noise)
    return State(
        x=_weighted_sum(coefficients, _X, terms),
        anchor=None if state.anchor is None else _weighted_sum(coefficients, _ANCHOR, terms),
        history=(denoised, *state.history),
    )


def _thresholded(denoised: Tensor, thresholding: Thresholding) -> Tensor:
    """Return one row's denoised prediction (C, h, w), cut off at a quantile and divided by it."""
    threshold = torch.quantile(denoised.abs().flatten(), thresholding.ratio)
    threshold = threshold.clamp(min=1, max=thresholding.highest)
    return torch.minimum(torch.maximum(denoised, -threshold), threshold) / threshold


def per_row(values: Tensor) -> Tensor:
    """Return values (B,) as (B, 1, 1, 1), to be multiplied with (B, C, h, w)."""
    return values[:, None, None, None]


def _weighted_sum(coefficients: Tensor, first: int, terms: tuple[Tensor | None, ...]) -> Tensor:
    """Return the sum of the terms, added in their order, with the weights in the columns from `first` on."""
    x = terms[0]
    assert x is not None
    total = per_row(coefficients[:, first]) * x
    for column, term in enumerate(terms[1:], first + 1):
        if term is not None:
            total.addcmul_(per_row(coefficients[:, column]), term)
    return total
