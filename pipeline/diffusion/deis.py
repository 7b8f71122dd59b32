"""DEIS, the exponential integrator with polynomials of the logarithm of the noise level (Zhang and Chen 2023)."""

import math

from pipeline.diffusion.multistep import Prediction, evaluation, final_order, first_order, lagrange, signal
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.table import Evaluation


def deis(
    request: SamplerRequest, timesteps: list[float], sigmas: list[float], predictions: list[Prediction]
) -> list[Evaluation]:
    """DEIS of orders 1 to 3 in log-rho form, which predicts noise."""
    rows, highest = [], request.schedule.solver_order
    for index, timestep in enumerate(timesteps):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        order = min(highest, index + 1, final_order(request, index, len(timesteps)) or highest)
        keep, gain = first_order(sigma, sigma_next, of_noise=True)
        parts = [gain]
        if order > 1:
            scale = signal(sigma_next)
            parts = [scale * part for part in _weights(sigmas[index - order + 1 : index + 1][::-1], sigma_next)]
        weights = {"x": keep} | {f"p{age}": part for age, part in enumerate(parts)}
        rows.append(evaluation(timestep, sigma, predictions[index], weights))
    return rows


def _weights(past: list[float], sigma_next: float) -> list[float]:
    """Return the weights of the noise at the levels `past` (newest first) in the step to `sigma_next`.

    Each is the integral of its Lagrange polynomial of log(sigma / past[0]) over sigma, from past[0] to `sigma_next`."""
    newest, width = past[0], math.log(sigma_next / past[0])
    moments = [sigma_next - newest]
    for power in range(1, len(past)):
        moments.append(sigma_next * width**power - power * moments[-1])
    nodes = [math.log(sigma / newest) for sigma in past]
    return [
        sum(part * moment for part, moment in zip(polynomial, moments, strict=True))
        for polynomial in lagrange(nodes, 0.0)
    ]
