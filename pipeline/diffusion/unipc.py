"""UniPC, the unified predictor-corrector (Zhao et al. 2023, algorithms 1 and 2), of orders 1 to 3."""

import math

from pipeline.diffusion.multistep import Prediction, evaluation, first_order, lagrange, weighted
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.table import Evaluation, Weights


def unipc(
    request: SamplerRequest, timesteps: list[float], sigmas: list[float], predictions: list[Prediction]
) -> list[Evaluation]:
    """UniPC with B1(h) or B2(h), which predicts the image or the noise.

    `anchor` holds the corrected latents of the step before; each evaluation corrects `x`, then predicts the next. The
    schedule's `disable_corrector` lists steps whose result is not corrected."""
    rows, last_order, schedule = [], 0, request.schedule
    for index, timestep in enumerate(timesteps):
        corrected: Weights = {"x": 1.0}
        if index > 0 and request.first + index - 1 not in schedule.disable_corrector:
            corrected = _corrector(schedule, sigmas, index, last_order)
        left = schedule.solver_order if schedule.lower_order_final is False else len(timesteps) - index
        order = 1 if sigmas[index + 1] == sigmas[index] else min(schedule.solver_order, left, index + 1)
        keep, weights = _predictor(schedule, sigmas, index, order)
        weights = weighted((1.0, weights), (keep, corrected))
        rows.append(evaluation(timestep, sigmas[index], predictions[index], weights, corrected))
        last_order = order
    return rows


def _predictor(schedule: NoiseScheduleConfig, sigmas: list[float], index: int, order: int) -> tuple[float, Weights]:
    """Return the weights of the latents and of the predictions in the step from `index`."""
    keep, gain = first_order(sigmas[index], sigmas[index + 1], of_noise=not schedule.predict_x0)
    if order == 1:
        return keep, {"p0": gain}
    nodes = [_log_snr_ratio(sigmas[index - age], sigmas[index], sigmas[index + 1]) for age in range(1, order)]
    step, scale = _step(schedule, sigmas[index], sigmas[index + 1])
    parts = [0.5] if order == 2 else _solution(nodes, step, scale)
    factor = gain * scale / math.expm1(step)
    differences = [
        (factor * part, {f"p{age}": 1 / node, "p0": -1 / node})
        for age, (part, node) in enumerate(zip(parts, nodes, strict=True), 1)
    ]
    return keep, weighted((gain, {"p0": 1.0}), *differences)


def _corrector(schedule: NoiseScheduleConfig, sigmas: list[float], index: int, order: int) -> Weights:
    """Return the weights of the corrected latents at `index`, with the newest prediction, which is made there."""
    before, sigma = sigmas[index - 1], sigmas[index]
    keep, gain = first_order(before, sigma, of_noise=not schedule.predict_x0)
    nodes = [_log_snr_ratio(sigmas[index - 1 - age], before, sigma) for age in range(1, order)]
    step, scale = _step(schedule, before, sigma)
    *parts, newest = [0.5] if order == 1 else _solution([*nodes, 1.0], step, scale)
    factor = gain * scale / math.expm1(step)
    differences = [
        (factor * part, {f"p{age + 1}": 1 / node, "p1": -1 / node})
        for age, (part, node) in enumerate(zip(parts, nodes, strict=True), 1)
    ]
    return weighted((1.0, {"anchor": keep, "p1": gain}), (factor * newest, {"p0": 1.0, "p1": -1.0}), *differences)


def _step(schedule: NoiseScheduleConfig, sigma: float, sigma_next: float) -> tuple[float, float]:
    """Return the step in half log-SNR, negative where denoised latents are predicted, and B(h)."""
    step = math.log(sigma_next / sigma)
    step = step if schedule.predict_x0 else -step
    return step, step if schedule.solver_type == "bh1" else math.expm1(step)


def _solution(nodes: list[float], step: float, scale: float) -> list[float]:
    """Return the weights of the differences at the nodes (Zhao et al. 2023, eq. 9): a Vandermonde system."""
    targets, factorial, phi = [], 1, math.expm1(step) / step - 1
    for power in range(1, len(nodes) + 1):
        targets.append(phi * factorial / scale)
        factorial *= power + 1
        phi = phi / step - 1 / factorial
    return [
        sum(part * target for part, target in zip(polynomial, targets, strict=True))
        for polynomial in lagrange(nodes, 0.0)
    ]


def _log_snr_ratio(sigma_older: float, sigma: float, sigma_next: float) -> float:
    """Return the (negative) distance in half log-SNR from `sigma` to `sigma_older`, in units of the step."""
    return math.log(sigma / sigma_older) / math.log(sigma / sigma_next)
