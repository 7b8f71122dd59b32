"""SA-Solver, the stochastic Adams method (Xue et al. 2023, algorithm 1), of orders 1 to 4."""

import math
from dataclasses import replace
from typing import Final

from pipeline.diffusion.multistep import Prediction, deviation, evaluation, lagrange, signal, weighted
from pipeline.diffusion.options import NOISE_ALGORITHMS
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.table import Evaluation, Weights

_STOCHASTIC: Final = (200, 800)
"""The timesteps between which fresh noise is added (tau is 1, else 0), as in diffusers."""


def sa_solver(
    request: SamplerRequest, timesteps: list[float], sigmas: list[float], predictions: list[Prediction]
) -> list[Evaluation]:
    """SA-Solver, which predicts the image or the noise.

    The corrector repeats the last step with the newest prediction: it keeps the step's latents and noise, and changes
    the weights of the predictions. Noise is drawn at each step, as in diffusers, also where its weight is zero."""
    schedule, count = request.schedule, len(timesteps)
    alphas = schedule.alphas_cumprod().tolist()
    highest = max(schedule.predictor_order, schedule.corrector_order - 1)
    rows, last = [], dict[str, float]()
    for index, timestep in enumerate(timesteps):
        corrected: Weights = {"x": 1.0}
        if index > 0:
            left = count - index + 2 if schedule.lower_order_final is not False else schedule.corrector_order
            order = min(schedule.corrector_order, left, min(index - 1, highest) + 2)
            now = _predictions(request, timesteps[index - 1], sigmas, index - 1, range(index, index - order, -1))
            before = {f"p{int(term[1:]) + 1}": -weight for term, weight in last.items()}
            corrected = weighted((1.0, corrected), (1.0, now), (1.0, before))
        left = count - index if schedule.lower_order_final is not False else schedule.predictor_order
        order = min(schedule.predictor_order, left, min(index, highest) + 1)
        last = _predictions(request, timestep, sigmas, index, range(index, index - order, -1))
        keep, noise = _latents_and_noise(request, timestep, sigmas[index], sigmas[index + 1])
        weights = weighted((keep, corrected), (1.0, last), (noise, {"noise": 1.0}))
        row = evaluation(timestep, sigmas[index], predictions[index], weights)
        alpha = alphas[int(timestep)]  # diffusers takes the timestep's own level for image latents
        rows.append(replace(row, level=(math.sqrt(alpha), math.sqrt(1 - alpha)), draws_noise=True))
    return rows


def _predictions(request: SamplerRequest, timestep: float, sigmas: list[float], start: int, used: range) -> Weights:
    """Return the weights of predictions in the step from `start`; `used` are their indices, p0's first.

    (Xue et al. 2023, eq. 14 and 17; of order 2, with the correction of the authors' code)"""
    of_noise, tau = request.schedule.algorithm_type in NOISE_ALGORITHMS, _tau(timestep)
    sigma, sigma_next = sigmas[start], sigmas[start + 1]
    h, rate = math.log(sigma / sigma_next), -1.0 if of_noise else 1 + tau**2
    scale = (1 + tau**2) * (-deviation(sigma_next) if of_noise else signal(sigma_next))
    nodes = [math.log(sigma_next / sigmas[index]) for index in used]
    moments = _moments(rate, h, len(nodes))
    parts = [
        sum(part * moment for part, moment in zip(polynomial, moments, strict=True))
        for polynomial in lagrange(nodes, 0.0)
    ]
    if len(parts) == 2 and not of_noise:
        exact = (h * rate - 1 + math.exp(-rate * h)) / rate**2
        change = (h**2 / 2 - exact) / (nodes[0] - nodes[1])
        parts = [parts[0] + change, parts[1] - change]
    return {f"p{age}": scale * part for age, part in enumerate(parts)}


def _moments(rate: float, h: float, count: int) -> list[float]:
    """Return the integrals of exp(rate * u) * u^k over u from -h to 0, for k from 0 to count - 1."""
    edge = math.exp(-rate * h)
    moments = [(1 - edge) / rate]
    for power in range(1, count):
        moments.append(-(edge * (-h) ** power + power * moments[-1]) / rate)
    return moments


def _latents_and_noise(
    request: SamplerRequest, timestep: float, sigma: float, sigma_next: float
) -> tuple[float, float]:
    """Return the weights of the latents and of fresh noise in a step."""
    tau, ratio = _tau(timestep), sigma_next / sigma
    if request.schedule.algorithm_type in NOISE_ALGORITHMS:
        return signal(sigma_next) / signal(sigma), tau * deviation(sigma_next) * math.sqrt(max(ratio**-2 - 1, 0.0))
    spread = deviation(sigma_next)
    return ratio**tau**2 * spread / deviation(sigma), spread * math.sqrt(max(1 - ratio ** (2 * tau**2), 0.0))


def _tau(timestep: float) -> int:
    first, last = _STOCHASTIC
    return 1 if first <= timestep <= last else 0
