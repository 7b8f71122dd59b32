"""DPM-Solver and DPM-Solver++ of orders 1 to 3, as multistep and single-step methods (Lu et al. 2022a, 2022b)."""

import math
from dataclasses import dataclass, replace

from pipeline.diffusion.multistep import Prediction, deviation, evaluation, final_order, signal, weighted
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.table import Evaluation, Weights


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """The weights of one step: of the latents, of the prediction and its first two differences, of fresh noise."""

    latents: float
    prediction: float
    slope: float = 0.0
    """Of the first difference, as integrated exactly (solver type heun)."""
    curvature: float = 0.0
    noise: float = 0.0


def dpm_multistep(
    request: SamplerRequest, timesteps: list[float], sigmas: list[float], predictions: list[Prediction]
) -> list[Evaluation]:
    """Multistep DPM-Solver, on predictions of earlier steps (Lu et al. 2022b, algorithm 2 for order 2)."""
    rows, schedule = [], request.schedule
    for index, timestep in enumerate(timesteps):
        order = _multistep_order(request, sigmas, index)
        step = _step(schedule, sigmas[index], sigmas[index + 1])
        parts = [(step.latents, {"x": 1.0}), (step.prediction, {"p0": 1.0}), (step.noise, {"noise": 1.0})]
        distances = [_distance(sigmas, index, index + 1, earlier) for earlier in range(index - 1, index - order, -1)]
        if order == 2:
            slope = {"p0": 1 / distances[0], "p1": -1 / distances[0]}
            parts.append((_second_order(schedule, step), slope))
        elif order == 3:
            near, far = distances[0], distances[1] - distances[0]
            newest, older = {"p0": 1 / near, "p1": -1 / near}, {"p1": 1 / far, "p2": -1 / far}
            change = weighted((1.0, newest), (-1.0, older))
            parts.append((step.slope, weighted((1.0, newest), (near / (near + far), change))))
            parts.append((step.curvature / (near + far), change))
        rows.append(evaluation(timestep, sigmas[index], predictions[index], weighted(*parts)))
    return rows


def dpm_singlestep(
    request: SamplerRequest, timesteps: list[float], sigmas: list[float], predictions: list[Prediction]
) -> list[Evaluation]:
    """Single-step DPM-Solver: steps of rising order from the same latents, then on from the last (Lu et al. 2022a).

    `anchor` holds the latents from which the steps of a group start. The noise of a stochastic step is fresh."""
    rows, schedule = [], request.schedule
    orders = _singlestep_orders(schedule, request.steps)
    for index, timestep in enumerate(timesteps):
        order = min(orders[request.first + index], index + 1)
        start = index + 1 - order
        step = _step(schedule, sigmas[start], sigmas[index + 1])
        base: Weights = {"x": 1.0} if order == 1 else {"anchor": 1.0}
        parts = [(step.latents, base), (step.prediction, {f"p{order - 1}": 1.0}), (step.noise, {"noise": 1.0})]
        parts += _singlestep_differences(schedule, step, sigmas, start, index, order)
        rows.append(evaluation(timestep, sigmas[index], predictions[index], weighted(*parts), base))
    return rows


def _singlestep_differences(
    schedule: NoiseScheduleConfig, step: _Step, sigmas: list[float], start: int, index: int, order: int
) -> list[tuple[float, Weights]]:
    """Return the differences of the predictions of a group, and their factors."""
    if order == 1:
        return []
    newest = -_distance(sigmas, start, index + 1, index)
    if order == 2:
        return [(_second_order(schedule, step), {"p0": 1 / newest, "p1": -1 / newest})]
    middle = -_distance(sigmas, start, index + 1, start + 1)
    to_newest, to_middle = {"p0": 1 / newest, "p2": -1 / newest}, {"p1": 1 / middle, "p2": -1 / middle}
    if schedule.solver_type != "heun":
        return [(step.slope, to_newest)]
    span = newest - middle
    slope = weighted((newest / span, to_middle), (-middle / span, to_newest))
    curvature = weighted((2 / span, to_newest), (-2 / span, to_middle))
    return [(step.slope, slope), (step.curvature, curvature)]


def _second_order(schedule: NoiseScheduleConfig, step: _Step) -> float:
    """Return the weight of the first difference in a step of second order."""
    return step.slope if schedule.solver_type == "heun" else 0.5 * step.prediction


def _step(schedule: NoiseScheduleConfig, sigma: float, sigma_next: float) -> _Step:
    """Return the weights of a step between two noise levels; a step to zero noise is of first order only."""
    if sigma_next in (0, sigma):
        return _first_order_step(schedule, sigma, sigma_next)
    step, h = _first_order_step(schedule, sigma, sigma_next), math.log(sigma / sigma_next)
    ratio, scale, spread = sigma_next / sigma, signal(sigma_next), deviation(sigma_next)
    if schedule.algorithm_type == "dpmsolver++":
        slope, curvature = scale * ((ratio - 1) / h + 1), -scale * ((ratio - 1 + h) / h**2 - 0.5)
    elif schedule.algorithm_type == "sde-dpmsolver++":
        gain, twice = 1 - ratio**2, 2 * h
        slope, curvature = scale * (1 - gain / twice), scale * ((gain - twice) / twice**2 - 0.5)
    else:
        growth = 1 / ratio - 1
        times = 2 if schedule.algorithm_type == "sde-dpmsolver" else 1
        slope, curvature = -times * spread * (growth / h - 1), -times * spread * ((growth - h) / h**2 - 0.5)
    return replace(step, slope=slope, curvature=curvature)


def _first_order_step(schedule: NoiseScheduleConfig, sigma: float, sigma_next: float) -> _Step:
    ratio, scale, spread = sigma_next / sigma, signal(sigma_next), deviation(sigma_next)
    shrink, grow = spread / deviation(sigma), scale / signal(sigma)
    if schedule.algorithm_type == "dpmsolver++":
        return _Step(latents=shrink, prediction=scale * (1 - ratio))
    if schedule.algorithm_type == "sde-dpmsolver++":
        noise = spread * math.sqrt(max(1 - ratio**2, 0.0))
        return _Step(latents=shrink * ratio, prediction=scale * (1 - ratio**2), noise=noise)
    growth = spread * (1 / ratio - 1)
    if schedule.algorithm_type == "dpmsolver":
        return _Step(latents=grow, prediction=-growth)
    noise = spread * math.sqrt(max(1 / ratio**2 - 1, 0.0))
    return _Step(latents=grow, prediction=-2 * growth, noise=noise)


def _multistep_order(request: SamplerRequest, sigmas: list[float], index: int) -> int:
    """Return the order of a step: low at the start, and where the schedule says so at the end."""
    count, schedule = len(sigmas) - 1, request.schedule
    if sigmas[index + 1] in (0, sigmas[index]) or (index + 1 == count and schedule.euler_at_final):
        return 1
    return min(schedule.solver_order, index + 1, final_order(request, index, count) or schedule.solver_order)


def _singlestep_orders(schedule: NoiseScheduleConfig, steps: int) -> list[int]:
    """Return the order of each step: groups of 1, 2, ... up to the solver's, the last step of order 1 where needed."""
    order = schedule.solver_order
    ends_at_zero = schedule.final_sigmas_type in (None, "zero") and schedule.algorithm_type != "dpmsolver"
    group = list(range(1, order + 1))
    if not (schedule.lower_order_final or steps % order or ends_at_zero):
        return group * (steps // order)
    orders = (group * (steps // order + 1))[:steps]
    if order > 1 and steps % order == 0:
        orders[-1] = 1
    return [*orders[:-1], 1] if ends_at_zero else orders


def _distance(sigmas: list[float], start: int, end: int, index: int) -> float:
    """Return the distance in half log-SNR from `index` to `start`, in units of the step from `start` to `end`."""
    return math.log(sigmas[index] / sigmas[start]) / math.log(sigmas[start] / sigmas[end])
