"""The timesteps and noise levels that a sampler visits."""

import math
from typing import Final

import numpy as np

from pipeline.diffusion.schedule import NoiseScheduleConfig, Spacing

KARRAS_RHO: Final = 7.0
_BETA_SHAPE: Final = 0.6


def timesteps(
    schedule: NoiseScheduleConfig, steps: int, default: Spacing, *, extra_point: bool = False, total: int | None = None
) -> list[float]:
    """Return `steps` falling training timesteps (Lin et al. 2023, table 2); ValueError if there are not so many.

    `extra_point` spaces one point more and drops the last, as the multistep solvers do. `total` is the number of
    training timesteps that are in use, the least noisy ones; trailing spacing then has fewer steps. Strides are
    rounded as numpy's `arange` and `linspace` round them, so that timesteps agree with diffusers'.
    """
    total = schedule.num_train_timesteps if total is None else total
    spacing = schedule.timestep_spacing or default
    points = steps + 1 if extra_point else steps
    if spacing == "trailing":
        stride = total - (total - schedule.num_train_timesteps / steps)
        count = math.ceil(total * steps / schedule.num_train_timesteps)
        return [float(round(total - index * stride) - 1) for index in range(count)]
    if spacing == "leading":
        ratio = total // points
        rising = [float(index * ratio) + schedule.steps_offset for index in range(points)]
    else:
        stride = (total - 1) / max(points - 1, 1)
        rising = [min(index * stride, total - 1.0) for index in range(points)]
    visited = rising[::-1][:steps]
    if visited[0] > schedule.num_train_timesteps - 1 or len({round(timestep) for timestep in visited}) < steps:
        raise ValueError(f"num_inference_steps is {steps}, too many for this sampler and noise schedule; give fewer")
    return visited


def rounded(values: list[float]) -> list[float]:
    return [float(round(value)) for value in values]


def training_sigmas(schedule: NoiseScheduleConfig) -> list[float]:
    """Return the ratio of noise to signal at each training timestep, rising (Karras et al. 2022)."""
    alphas = schedule.positive_alphas_cumprod()
    return ((1 - alphas) / alphas).sqrt().tolist()


def sigmas_at(levels: list[float], at: list[float]) -> list[float]:
    """Return the training sigmas `levels` at the timesteps `at`, linearly interpolated."""
    values = []
    for timestep in at:
        below = min(int(timestep), len(levels) - 1)
        above = min(below + 1, len(levels) - 1)
        values.append(levels[below] + (timestep - below) * (levels[above] - levels[below]))
    return values


def karras_sigmas(highest: float, lowest: float, steps: int) -> list[float]:
    """Return falling noise levels, evenly spaced in their 1/7th power (Karras et al. 2022, eq. 5)."""
    first, last = highest ** (1 / KARRAS_RHO), lowest ** (1 / KARRAS_RHO)
    return [(first + index / max(steps - 1, 1) * (last - first)) ** KARRAS_RHO for index in range(steps)]


def spaced_sigmas(
    spacing: str, schedule: NoiseScheduleConfig, highest: float, lowest: float, steps: int
) -> list[float]:
    """Return falling noise levels between the schedule's own bounds, or else those given.

    `spacing` is one of SIGMA_SPACINGS in `catalog.py`; that of Lu et al. 2022 has no bounds of the schedule's."""
    if spacing != "lu":
        highest = highest if schedule.sigma_max is None else schedule.sigma_max
        lowest = lowest if schedule.sigma_min is None else schedule.sigma_min
    if spacing == "karras":
        return karras_sigmas(highest, lowest, steps)
    if spacing == "beta":
        parts = [beta_quantile(1 - index / max(steps - 1, 1)) for index in range(steps)]
        return [lowest + part * (highest - lowest) for part in parts]
    return exponential_sigmas(highest, lowest, steps)


def exponential_sigmas(highest: float, lowest: float, steps: int) -> list[float]:
    """Return falling noise levels, evenly spaced in their logarithm."""
    first, last = math.log(highest), math.log(lowest)
    return [math.exp(first + index / max(steps - 1, 1) * (last - first)) for index in range(steps)]


def beta_quantile(probability: float) -> float:
    """Return the quantile of the Beta distribution of shape 0.6, 0.6, for noise levels as in Lee et al. 2024."""
    if probability > 0.5:
        return 1 - beta_quantile(1 - probability)
    total = math.gamma(_BETA_SHAPE) ** 2 / math.gamma(2 * _BETA_SHAPE)
    low, high = 0.0, 0.5
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_integral(middle) < probability * total else (low, middle)
    return (low + high) / 2


def _beta_integral(x: float) -> float:
    """Return the incomplete beta function at x <= 0.5, by its power series (DLMF 8.17.8)."""
    term, total = 1.0, 1 / _BETA_SHAPE
    for power in range(1, 60):
        term *= (power - _BETA_SHAPE) / power * x
        total += term / (power + _BETA_SHAPE)
    return x**_BETA_SHAPE * total


def timestep_of(levels: list[float], sigma: float) -> float:
    """Return the (fractional) timestep of the noise level `sigma`, interpolated linearly in its logarithm."""
    target = math.log(max(sigma, 1e-10))
    below = max((index for index, level in enumerate(levels) if math.log(level) <= target), default=0)
    below = min(below, len(levels) - 2)
    low, high = math.log(levels[below]), math.log(levels[below + 1])
    part = min(max((low - target) / (low - high), 0.0), 1.0)
    return (1 - part) * below + part * (below + 1)


def whole_timestep_of(schedule: NoiseScheduleConfig, sigma: float) -> float:
    """Return the whole timestep below `timestep_of`, computed in float32 as in diffusers: the ends depend on it."""
    alphas = schedule.positive_alphas_cumprod().numpy().astype(np.float32)
    levels = np.log(((1 - alphas) / alphas) ** np.float32(0.5))
    target = np.log(np.maximum(sigma, 1e-10))
    below = min(max(int((target >= levels).sum()) - 1, 0), len(levels) - 2)
    low, high = levels[below], levels[below + 1]
    part = np.clip((low - target) / (low - high), 0, 1)
    return float(int((1 - part) * below + part * (below + 1)))
