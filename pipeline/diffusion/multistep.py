"""Multistep solvers: the evaluations of a whole run, from its noise levels and prediction weights."""

import math
from collections.abc import Callable
from typing import Final

from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.table import Evaluation, Weights

_FEW_STEPS: Final = 15
"""Below this number of steps, `lower_order_final` makes the last step one of first order, as in diffusers."""

Prediction = tuple[float, float]
"""Weights of latents and model output in the denoised latents."""

Solver = Callable[[SamplerRequest, list[float], list[float], list[Prediction]], list[Evaluation]]
"""Returns the evaluations for timesteps (n), noise levels (n + 1, with the last one) and predictions (n)."""


def lms_weights(past: list[float], sigma_next: float) -> list[float]:
    """Return the weights of the slopes at the noise levels `past` (newest first) in the step to `sigma_next`.

    Each weight is the integral of its Lagrange polynomial from past[0] to `sigma_next`.
    """
    weights = []
    for node in past:
        polynomial = [1.0]  # coefficients, rising powers of (sigma - past[0])
        for other in past:
            if other != node:
                root, scale = other - past[0], node - other
                shifted = [0.0, *polynomial]
                polynomial = [
                    (high - root * low) / scale for high, low in zip(shifted, [*polynomial, 0.0], strict=True)
                ]
        width = sigma_next - past[0]
        weights.append(sum(part * width ** (power + 1) / (power + 1) for power, part in enumerate(polynomial)))
    return weights


def dpmpp_2m(
    request: SamplerRequest, timesteps: list[float], sigmas: list[float], predictions: list[Prediction]
) -> list[Evaluation]:
    """DPM-Solver++ (2M), midpoint (Lu et al. 2022b, algorithm 2)."""
    rows = []
    for index, timestep in enumerate(timesteps):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        signal, ratio = _signal(sigma_next), sigma_next / sigma
        gain = signal * (1 - ratio)
        weights = {"x": _deviation(sigma_next) / _deviation(sigma)} | _second_order(request, gain, sigmas, index)
        rows.append(_evaluation(timestep, sigma, predictions[index], weights))
    return rows


def dpmpp_2m_sde(
    request: SamplerRequest, timesteps: list[float], sigmas: list[float], predictions: list[Prediction]
) -> list[Evaluation]:
    """The stochastic DPM-Solver++ (2M), midpoint (Lu et al. 2022b, section 6)."""
    rows = []
    for index, timestep in enumerate(timesteps):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        signal, ratio = _signal(sigma_next), sigma_next / sigma
        gain = signal * (1 - ratio**2)
        weights = _second_order(request, gain, sigmas, index)
        weights["x"] = _deviation(sigma_next) / _deviation(sigma) * ratio
        weights["noise"] = _deviation(sigma_next) * math.sqrt(max(1 - ratio**2, 0.0))
        rows.append(_evaluation(timestep, sigma, predictions[index], weights))
    return rows


def unipc(
    request: SamplerRequest, timesteps: list[float], sigmas: list[float], predictions: list[Prediction]
) -> list[Evaluation]:
    """UniPC of order 2 with B2(h) (Zhao et al. 2023, algorithms 1 and 2), which predicts the image or the noise.

    `anchor` holds the corrected latents of the step before; each evaluation corrects `x`, then predicts the next. The
    schedule's `disable_corrector` lists steps whose result is not corrected."""
    rows, last_order, of_noise = [], 0, not request.schedule.predict_x0
    for index, timestep in enumerate(timesteps):
        corrected: Weights = {"x": 1.0}
        if index > 0 and request.first + index - 1 not in request.schedule.disable_corrector:
            corrected = _unipc_corrector(sigmas, index, last_order, of_noise=of_noise)
        order = min(2, len(timesteps) - index, index + 1)
        keep, weights = _unipc_predictor(sigmas, index, order, of_noise=of_noise)
        for term, part in corrected.items():
            weights[term] = weights.get(term, 0.0) + keep * part
        rows.append(_evaluation(timestep, sigmas[index], predictions[index], weights, corrected))
        last_order = order
    return rows


def _unipc_predictor(sigmas: list[float], index: int, order: int, *, of_noise: bool) -> tuple[float, Weights]:
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    keep, gain = _first_order(sigma, sigma_next, of_noise=of_noise)
    weights = {"p0": gain}
    if order == 2:
        ratio = _log_snr_ratio(sigmas[index - 1], sigma, sigma_next)
        weights = {"p0": gain - gain * 0.5 / ratio, "p1": gain * 0.5 / ratio}
    return keep, weights


def _unipc_corrector(sigmas: list[float], index: int, order: int, *, of_noise: bool) -> Weights:
    sigma_previous, sigma = sigmas[index - 1], sigmas[index]
    keep, gain = _first_order(sigma_previous, sigma, of_noise=of_noise)
    weights = {"anchor": keep, "p1": gain}
    if order == 1:
        parts = {"p0": 0.5, "p1": -0.5}
    else:
        older = _log_snr_ratio(sigmas[index - 2], sigma_previous, sigma)
        step = math.log(sigma / sigma_previous)  # minus the step in half log-SNR
        step = -step if of_noise else step
        scale = math.expm1(step)
        first = scale / step - 1
        targets = first / scale, (first / step - 0.5) * 2 / scale
        # the two weights of [[1, 1], [older, 1]] @ weights = targets
        past = (targets[0] - targets[1]) / (1 - older)
        now = targets[0] - past
        parts = {"p0": now, "p1": -now - past / older, "p2": past / older}
    for term, part in parts.items():
        weights[term] = weights.get(term, 0.0) + gain * part
    return weights


def _first_order(sigma: float, sigma_next: float, *, of_noise: bool) -> tuple[float, float]:
    """Return the weights of the latents and of the prediction in a step of first order."""
    if of_noise:
        return _signal(sigma_next) / _signal(sigma), _deviation(sigma_next) * (1 - sigma / sigma_next)
    return _deviation(sigma_next) / _deviation(sigma), _signal(sigma_next) * (1 - sigma_next / sigma)


def _second_order(request: SamplerRequest, gain: float, sigmas: list[float], index: int) -> Weights:
    """Return the weights of the newest two denoised latents, extrapolated to the middle of the step.

    The last step is of first order if it ends at zero noise, or where the schedule says so."""
    schedule, is_last = request.schedule, index + 2 == len(sigmas)
    few = schedule.lower_order_final and request.first + len(sigmas) - 1 < _FEW_STEPS
    sigma, sigma_next = sigmas[index], sigmas[index + 1]
    if index == 0 or sigma_next in (0, sigma) or (is_last and (few or schedule.euler_at_final)):
        return {"p0": gain}
    ratio = math.log(sigmas[index - 1] / sigma) / math.log(sigma / sigma_next)
    return {"p0": gain * (1 + 0.5 / ratio), "p1": -gain * 0.5 / ratio}


def _log_snr_ratio(sigma_older: float, sigma: float, sigma_next: float) -> float:
    """Return the (negative) distance in half log-SNR from `sigma` to `sigma_older`, in units of the step."""
    return math.log(sigma / sigma_older) / math.log(sigma / sigma_next)


def _signal(sigma: float) -> float:
    return 1 / math.sqrt(1 + sigma**2)


def _deviation(sigma: float) -> float:
    return sigma / math.sqrt(1 + sigma**2)


def _evaluation(
    timestep: float, sigma: float, prediction: Prediction, x: Weights, anchor: Weights | None = None
) -> Evaluation:
    level = _signal(sigma), _deviation(sigma)
    return Evaluation(
        timestep=timestep, level=level, c_skip=prediction[0], c_out=prediction[1], x=x, anchor=anchor or {}
    )
