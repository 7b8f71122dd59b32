"""The evaluations of PNDM (Liu et al. 2022, algorithm 2): which timestep each goes to, and from which predictions."""

import itertools
from dataclasses import dataclass
from typing import Final, Literal

_ADAMS_BASHFORTH: Final = (55 / 24, -59 / 24, 37 / 24, -9 / 24)
_RUNGE_KUTTA: Final = {0: 1 / 6, 1: 1 / 3, 2: 1 / 3, 3: 1 / 6}
_EVALUATIONS: Final = 4
"""Evaluations of a Runge-Kutta step, of which the multistep method uses the first."""

_Latents = Literal["x", "anchor"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PndmStep:
    """One evaluation, and the transfer of `base` from timestep `start` to `end` along the weighted predictions."""

    timestep: int
    start: int
    end: int
    predictions: dict[int, float]
    """The weights of the predictions, by age."""
    base: _Latents = "x"
    anchor: _Latents = "x"
    """The latents that the next evaluation finds as its anchor."""


def plms_steps(visited: list[int], stride: int) -> list[PndmStep]:
    """Return the steps without the Runge-Kutta start, as Stable Diffusion 1 (diffusers' `skip_prk_steps`).

    The second timestep is evaluated twice instead; the second evaluation repeats the first step."""
    steps = []
    for index, timestep in enumerate(visited):
        start, end = (timestep + stride, timestep) if index == 1 else (timestep, timestep - stride)
        base: _Latents = "anchor" if index == 1 else "x"
        predictions = dict(enumerate(_plms(index)))
        steps.append(PndmStep(timestep=timestep, start=start, end=end, base=base, predictions=predictions))
    return steps


def runge_kutta_steps(visited: list[int], stride: int) -> list[PndmStep]:
    """Return the steps that start with three of Runge and Kutta's method; `visited` has four or more."""
    steps: list[PndmStep] = []
    half, newest = stride // 2, {0: 1.0}
    for now, after in itertools.pairwise(visited[:_EVALUATIONS]):
        middle = after + half
        steps += [
            PndmStep(timestep=now, start=now, end=now - half, predictions=newest),
            PndmStep(timestep=middle, start=now, end=middle, predictions=newest, base="anchor", anchor="anchor"),
            PndmStep(timestep=middle, start=now, end=after, predictions=newest, base="anchor", anchor="anchor"),
            PndmStep(timestep=after, start=now, end=after, predictions=_RUNGE_KUTTA, base="anchor"),
        ]
    used = [0, 4, 8]
    for timestep in visited[3:]:
        used.append(len(steps))
        ages = [len(steps) - evaluation for evaluation in used[:-5:-1]]
        predictions = dict(zip(ages, _ADAMS_BASHFORTH, strict=True))
        steps.append(PndmStep(timestep=timestep, start=timestep, end=timestep - stride, predictions=predictions))
    return steps


def adams_bashforth(count: int) -> tuple[float, ...]:
    """Return the weights of the newest predictions where `count` of them are at hand."""
    parts = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), _ADAMS_BASHFORTH)
    return parts[min(count, len(parts)) - 1]


def _plms(index: int) -> tuple[float, ...]:
    """Return the weights of the newest predictions at evaluation `index`; evaluation 1 repeats the first step."""
    parts = (
        (1,),
        (1 / 2, 1 / 2),
        (3 / 2, 0, -1 / 2),
        (23 / 12, -16 / 12, 0, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, 0, -9 / 24),
        _ADAMS_BASHFORTH,
    )
    return parts[min(index, len(parts) - 1)]
