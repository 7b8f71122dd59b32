"""Samplers on the variance-preserving process, whose latents are `signal * image + deviation * noise`."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pipeline.diffusion.multistep import Solver
from pipeline.diffusion.pndm_steps import adams_bashforth, plms_steps, runge_kutta_steps
from pipeline.diffusion.prediction import clip_range, denoised_weights, noise_weights
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.spacing import (
    rounded,
    sigmas_at,
    spaced_sigmas,
    timestep_of,
    timesteps,
    training_sigmas,
    whole_timestep_of,
)
from pipeline.diffusion.table import Evaluation, SamplerTable, Thresholding, Weights, table_of

_ALMOST_ZERO: Final = 1e-8


def ddim(request: SamplerRequest) -> SamplerTable:
    """Denoising diffusion implicit models (Song et al. 2021, eq. 12 and 16)."""
    schedule, alphas = request.schedule, request.schedule.alphas_cumprod().tolist()
    final = 1.0 if schedule.set_alpha_to_one in (None, True) else alphas[0]
    stride = schedule.num_train_timesteps // request.steps
    visited = [int(t) for t in rounded(timesteps(schedule, request.steps, "leading"))][request.first :]
    rows = []
    for timestep in visited:
        alpha, alpha_next = alphas[timestep], alphas[timestep - stride] if timestep >= stride else final
        signal, deviation = math.sqrt(alpha), math.sqrt(1 - alpha)
        variance = max((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next), 0.0)
        spread = request.eta * math.sqrt(variance)
        direction = math.sqrt(max(1 - alpha_next - spread**2, 0.0))
        noise_x, noise_output = noise_weights(schedule, signal, deviation)
        weights = {
            "p0": math.sqrt(alpha_next),
            "x": direction * noise_x,
            "model_output": direction * noise_output,
            "noise": spread,
        }
        rows.append(vp_row(timestep, alpha, denoised_weights(schedule, signal, deviation), weights))
    return vp_table(request, rows, clip=clip_range(schedule, default=True))


def ddpm(request: SamplerRequest) -> SamplerTable:
    """Denoising diffusion probabilistic models, with either variance (Ho et al. 2020, section 3.2, eq. 6 and 7)."""
    schedule, alphas = request.schedule, request.schedule.alphas_cumprod().tolist()
    visited = [int(t) for t in rounded(timesteps(schedule, request.steps, "leading"))]
    rows = []
    for index in range(request.first, len(visited)):
        timestep = visited[index]
        alpha, alpha_next = alphas[timestep], alphas[visited[index + 1]] if index + 1 < len(visited) else 1.0
        ratio = alpha / alpha_next
        weights = {
            "p0": math.sqrt(alpha_next) * (1 - ratio) / (1 - alpha),
            "x": math.sqrt(ratio) * (1 - alpha_next) / (1 - alpha),
            "noise": _ddpm_deviation(schedule.variance_type, timestep, alpha, alpha_next),
        }
        denoised = denoised_weights(schedule, math.sqrt(alpha), math.sqrt(1 - alpha))
        rows.append(vp_row(timestep, alpha, denoised, weights))
    return vp_table(request, rows, clip=clip_range(schedule, default=True))


def _ddpm_deviation(variance_type: str, timestep: int, alpha: float, alpha_next: float) -> float:
    """Return the deviation of the noise of one step; there is none at the last timestep of training."""
    large = 1 - alpha / alpha_next
    variance = large if variance_type == "fixed_large" else (1 - alpha_next) / (1 - alpha) * large
    return math.sqrt(variance) if timestep > 0 else 0.0


def pndm(request: SamplerRequest) -> SamplerTable:
    """Pseudo linear multistep (Liu et al. 2022, eq. 9 and 12), with or without its Runge-Kutta start."""
    schedule = request.schedule
    alphas = schedule.positive_alphas_cumprod().tolist()
    final = 1.0 if schedule.set_alpha_to_one else alphas[0]
    visited = [int(t) for t in rounded(timesteps(schedule, request.steps, "leading"))]
    stride = schedule.num_train_timesteps // request.steps
    if schedule.skip_prk_steps:
        steps = plms_steps([*visited[:2], *visited[1:]][request.first :], stride)
    elif request.first or request.steps < 4:
        raise ValueError("sampler pndm with skip_prk_steps false runs all of four or more steps; give another sampler")
    else:
        steps = runge_kutta_steps(visited, stride)
    rows = []
    for step in steps:
        alpha = alphas[min(step.start, schedule.num_train_timesteps - 1)]
        keep, move = _transfer(alpha, alphas[step.end] if step.end >= 0 else final)
        if schedule.prediction_type == "v_prediction":
            keep, move = keep + move * math.sqrt(1 - alpha), move * math.sqrt(alpha)
        weights = {step.base: keep} | {f"p{age}": move * part for age, part in step.predictions.items()}
        rows.append(vp_row(step.timestep, alphas[step.timestep], (0.0, 1.0), weights, {step.anchor: 1.0}))
    return vp_table(request, rows)


def ipndm(request: SamplerRequest) -> SamplerTable:
    """Improved pseudo linear multistep (Zhang and Chen 2023, appendix H.2), for networks whose timesteps are 0 to 1.

    The schedule is a circle, whatever the checkpoint's is."""
    angles = [part / request.steps * math.pi / 2 for part in range(request.steps, -1, -1)]
    deviations = [math.sin(angle) ** 2 for angle in angles]
    signals = [math.sqrt(1 - deviation**2) for deviation in deviations]
    rows = []
    for index in range(request.first, request.steps):
        signal, deviation = signals[index], deviations[index]
        keep = signals[index + 1] / signal if signal > _ALMOST_ZERO else 0.0
        move = deviations[index + 1] - keep * deviation if signal > _ALMOST_ZERO else deviations[index + 1]
        parts = adams_bashforth(index - request.first + 1)
        weights = {"x": keep} | {f"p{age}": move * part for age, part in enumerate(parts)}
        timestep = math.atan2(deviation, signal) / math.pi * 2
        rows.append(vp_row(timestep, signal**2, (deviation, signal), weights))
    return vp_table(request, rows)


def sampler_of_solver(
    solver: Solver,
    *,
    predicts_noise: Callable[[NoiseScheduleConfig], bool],
    last_sigma: Callable[[NoiseScheduleConfig, float, float], float],
    truncates: Callable[[NoiseScheduleConfig], bool] = lambda schedule: False,
) -> Callable[[SamplerRequest], SamplerTable]:
    """Return the sampler of a multistep solver.

    `last_sigma` gives the noise level after the last step, from the last one that is spaced and the least of training;
    `truncates` says whether whole timesteps of Karras' and Lu's noise levels are below them, else they are rounded."""

    def build(request: SamplerRequest) -> SamplerTable:
        schedule, levels = request.schedule, training_sigmas(request.schedule)
        used = sum(-math.log(level) >= schedule.lambda_min_clipped for level in levels)
        visited = rounded(timesteps(schedule, request.steps, "linspace", extra_point=True, total=used))
        sigmas = sigmas_at(levels, visited)
        if request.spacing is not None:
            sigmas = spaced_sigmas(request.spacing, schedule, levels[-1], levels[0], request.steps)
            if request.spacing in ("exponential", "beta") or truncates(schedule):
                visited = [whole_timestep_of(schedule, sigma) for sigma in sigmas]
            else:
                visited = rounded([timestep_of(levels, sigma) for sigma in sigmas])
        if request.first >= len(visited):
            raise ValueError(f"strength {request.strength:g} of {request.steps} steps leaves none; give more")
        last = last_sigma(schedule, levels[0] if request.spacing is None else sigmas[-1], levels[0])
        visited, sigmas = visited[request.first :], [*sigmas, last][request.first :]
        signals = [1 / math.sqrt(1 + sigma**2) for sigma in sigmas[:-1]]
        predicted = noise_weights if predicts_noise(schedule) else denoised_weights
        if predicts_noise(schedule):  # thresholding is for denoised predictions only, as in diffusers
            request = replace(request, schedule=replace(schedule, thresholding=False))
        predictions = [
            predicted(schedule, signal, signal * sigma) for signal, sigma in zip(signals, sigmas[:-1], strict=True)
        ]
        return vp_table(request, solver(request, visited, sigmas, predictions))

    return build


def vp_row(
    timestep: float, alpha: float, denoised: tuple[float, float], x: Weights, anchor: Weights | None = None
) -> Evaluation:
    """Return an evaluation at a timestep whose clean latents have the share `alpha` of the variance."""
    level = math.sqrt(alpha), math.sqrt(1 - alpha)
    return Evaluation(timestep=timestep, level=level, c_skip=denoised[0], c_out=denoised[1], x=x, anchor=anchor or {})


def vp_table(request: SamplerRequest, rows: list[Evaluation], *, clip: float = math.inf) -> SamplerTable:
    """Return the table of latents of unit variance; thresholding, where the schedule has it, replaces clamping."""
    schedule = request.schedule
    thresholding = Thresholding(schedule.dynamic_thresholding_ratio, schedule.sample_max_value)
    return table_of(
        rows,
        start_noise=1.0 if request.strength is None else None,
        clip=math.inf if schedule.thresholding else clip,
        thresholding=thresholding if schedule.thresholding else None,
    )


def _transfer(alpha: float, alpha_next: float) -> tuple[float, float]:
    """Return the weights of latents and noise in the step from `alpha` to `alpha_next` (Liu et al. 2022, eq. 9)."""
    move = alpha * math.sqrt(1 - alpha_next) + math.sqrt(alpha * (1 - alpha) * alpha_next)
    return math.sqrt(alpha_next / alpha), -(alpha_next - alpha) / move
