"""The multistep solvers' updates: weights of one step from noise levels alone."""

import math

from pipeline.diffusion.table import Evaluation, Weights

Prediction = tuple[float, float]
"""Weights of latents and model output in the denoised latents."""


def lms_weights(past: list[float], there: float) -> list[float]:
    """Weights of the slopes at the noise levels `past` (newest first) in the step from past[0] to `there`.

    Each is the integral of its Lagrange polynomial over the step.
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
        width = there - past[0]
        weights.append(sum(part * width ** (power + 1) / (power + 1) for power, part in enumerate(polynomial)))
    return weights


def dpmpp_2m(timesteps: list[float], sigmas: list[float], predictions: list[Prediction]) -> list[Evaluation]:
    """DPM-Solver++ (2M), midpoint (Lu et al. 2022b, algorithm 2); the last step, to zero noise, is of first order."""
    rows = []
    for index, timestep in enumerate(timesteps):
        here, there = sigmas[index], sigmas[index + 1]
        signal, ratio = _signal(there), there / here
        gain = signal * (1 - ratio)
        weights = {"x": _deviation(there) / _deviation(here)} | _second_order(gain, sigmas, index)
        rows.append(_evaluation(timestep, here, predictions[index], weights))
    return rows


def dpmpp_2m_sde(timesteps: list[float], sigmas: list[float], predictions: list[Prediction]) -> list[Evaluation]:
    """The stochastic DPM-Solver++ (2M), midpoint (Lu et al. 2022b, section 6)."""
    rows = []
    for index, timestep in enumerate(timesteps):
        here, there = sigmas[index], sigmas[index + 1]
        signal, ratio = _signal(there), there / here
        gain = signal * (1 - ratio**2)
        weights = {"x": _deviation(there) / _deviation(here) * ratio} | _second_order(gain, sigmas, index)
        weights["noise"] = _deviation(there) * math.sqrt(1 - ratio**2)
        rows.append(_evaluation(timestep, here, predictions[index], weights))
    return rows


def unipc(timesteps: list[float], sigmas: list[float], predictions: list[Prediction]) -> list[Evaluation]:
    """UniPC of order 2 with B2(h), corrector included (Zhao et al. 2023, algorithms 1 and 2).

    `anchor` holds the corrected latents of the step before; each evaluation corrects `x`, then predicts the next.
    """
    rows, last_order = [], 0
    for index, timestep in enumerate(timesteps):
        corrected: Weights = {"x": 1.0} if index == 0 else _unipc_corrector(sigmas, index, last_order)
        order = min(2, len(timesteps) - index, index + 1)
        keep, weights = _unipc_predictor(sigmas, index, order)
        for term, part in corrected.items():
            weights[term] = weights.get(term, 0.0) + keep * part
        rows.append(_evaluation(timestep, sigmas[index], predictions[index], weights, corrected))
        last_order = order
    return rows


def _unipc_predictor(sigmas: list[float], index: int, order: int) -> tuple[float, Weights]:
    here, there = sigmas[index], sigmas[index + 1]
    gain = _signal(there) * (1 - there / here)
    weights = {"p0": gain}
    if order == 2:
        before = _log_snr_ratio(sigmas[index - 1], here, there)
        weights = {"p0": gain - gain * 0.5 / before, "p1": gain * 0.5 / before}
    return _deviation(there) / _deviation(here), weights


def _unipc_corrector(sigmas: list[float], index: int, order: int) -> Weights:
    before, here = sigmas[index - 1], sigmas[index]
    gain = _signal(here) * (1 - here / before)
    weights = {"anchor": _deviation(here) / _deviation(before), "p1": gain}
    if order == 1:
        parts = {"p0": 0.5, "p1": -0.5}
    else:
        older = _log_snr_ratio(sigmas[index - 2], before, here)
        step = math.log(here / before)  # minus the step in half log-SNR
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


def _second_order(gain: float, sigmas: list[float], index: int) -> Weights:
    """Weights of the newest two denoised latents, extrapolated to the middle of the step."""
    here, there = sigmas[index], sigmas[index + 1]
    if index == 0 or there == 0:
        return {"p0": gain}
    ratio = math.log(sigmas[index - 1] / here) / math.log(here / there)
    return {"p0": gain * (1 + 0.5 / ratio), "p1": -gain * 0.5 / ratio}


def _log_snr_ratio(older: float, here: float, there: float) -> float:
    """The older level's place in half log-SNR, in units of the step from `here` to `there`: negative."""
    return math.log(here / older) / math.log(here / there)


def _signal(sigma: float) -> float:
    return 1 / math.sqrt(1 + sigma**2)


def _deviation(sigma: float) -> float:
    return sigma / math.sqrt(1 + sigma**2)


def _evaluation(
    timestep: float, sigma: float, prediction: Prediction, x: Weights, anchor: Weights | None = None
) -> Evaluation:
    level = _signal(sigma), _deviation(sigma)
    return Evaluation(timestep=timestep, level=level, skip=prediction[0], out=prediction[1], x=x, anchor=anchor or {})
