"""What multistep solvers share: their form, the interpolation of predictions, and single steps."""

import math
from collections.abc import Callable

from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.table import Evaluation, Weights

Prediction = tuple[float, float]
"""Weights of latents and model output in the denoised latents, or in the noise for solvers that predict noise."""

Solver = Callable[[SamplerRequest, list[float], list[float], list[Prediction]], list[Evaluation]]
"""Returns the evaluations for timesteps (n), noise levels (n + 1, with the last one) and predictions (n)."""

FEW_STEPS = 15
"""Below this number of steps, `lower_order_final` makes the last step one of first order, as in diffusers."""


def lagrange(nodes: list[float], origin: float) -> list[list[float]]:
    """Return the Lagrange polynomials of the nodes: each its coefficients, of rising powers of (value - origin)."""
    polynomials = []
    for node in nodes:
        polynomial = [1.0]
        for other in nodes:
            if other != node:
                root, scale = other - origin, node - other
                shifted = [0.0, *polynomial]
                polynomial = [
                    (high - root * low) / scale for high, low in zip(shifted, [*polynomial, 0.0], strict=True)
                ]
        polynomials.append(polynomial)
    return polynomials


def lms_weights(past: list[float], sigma_next: float) -> list[float]:
    """Return the weights of the slopes at the noise levels `past` (newest first) in the step to `sigma_next`.

    Each weight is the integral of its Lagrange polynomial from past[0] to `sigma_next`.
    """
    width = sigma_next - past[0]
    return [
        sum(part * width ** (power + 1) / (power + 1) for power, part in enumerate(polynomial))
        for polynomial in lagrange(past, past[0])
    ]


def weighted(*parts: tuple[float, Weights]) -> Weights:
    """Return the sum of weights, each times its factor."""
    total: Weights = {}
    for factor, weights in parts:
        for term, weight in weights.items():
            total[term] = total.get(term, 0.0) + factor * weight
    return total


def first_order(sigma: float, sigma_next: float, *, of_noise: bool) -> tuple[float, float]:
    """Return the weights of the latents and of the prediction in a step of first order."""
    if of_noise:
        return signal(sigma_next) / signal(sigma), deviation(sigma_next) * (1 - sigma / sigma_next)
    return deviation(sigma_next) / deviation(sigma), signal(sigma_next) * (1 - sigma_next / sigma)


def final_order(request: SamplerRequest, index: int, count: int) -> int | None:
    """Return the highest order of step `index` of `count`, by the schedule's `lower_order_final`; None: any order."""
    few = request.schedule.lower_order_final is not False and request.first + count < FEW_STEPS
    return count - index if few else None


def signal(sigma: float) -> float:
    """Return the weight of clean latents in latents of unit variance, at a ratio `sigma` of noise to signal."""
    return 1 / math.sqrt(1 + sigma**2)


def deviation(sigma: float) -> float:
    """Return the weight of noise in latents of unit variance, at a ratio `sigma` of noise to signal."""
    return sigma / math.sqrt(1 + sigma**2)


def evaluation(
    timestep: float, sigma: float, prediction: Prediction, x: Weights, anchor: Weights | None = None
) -> Evaluation:
    """Return an evaluation of latents of unit variance."""
    level = signal(sigma), deviation(sigma)
    return Evaluation(
        timestep=timestep, level=level, c_skip=prediction[0], c_out=prediction[1], x=x, anchor=anchor or {}
    )
