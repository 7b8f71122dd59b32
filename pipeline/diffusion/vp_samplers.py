"""Samplers on the variance-preserving process, whose latents are `signal * image + deviation * noise`."""

import math
from collections.abc import Callable

from pipeline.diffusion.multistep import Solver, unipc
from pipeline.diffusion.pndm_steps import plms_steps, runge_kutta_steps
from pipeline.diffusion.prediction import clip_range, denoised_weights, noise_weights
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.spacing import (
    karras_bounds,
    karras_sigmas,
    rounded,
    sigmas_at,
    timestep_of,
    timesteps,
    training_sigmas,
)
from pipeline.diffusion.table import Evaluation, SamplerTable, Weights, table_of


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
        rows.append(_vp_row(timestep, alpha, denoised_weights(schedule, signal, deviation), weights))
    return _vp_table(request, rows, clip=clip_range(schedule, default=True))


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
        rows.append(_vp_row(timestep, alpha, denoised, weights))
    return _vp_table(request, rows, clip=clip_range(schedule, default=True))


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
        rows.append(_vp_row(step.timestep, alphas[step.timestep], (0.0, 1.0), weights, {step.anchor: 1.0}))
    return _vp_table(request, rows)


def sampler_of_solver(solver: Solver) -> Callable[[SamplerRequest], SamplerTable]:
    """Return the sampler of a solver of `multistep.py`, whose predictions are denoised latents (Lu et al. 2022)."""

    def build(request: SamplerRequest) -> SamplerTable:
        schedule, levels = request.schedule, training_sigmas(request.schedule)
        used = sum(-math.log(level) >= schedule.lambda_min_clipped for level in levels)
        visited = rounded(timesteps(schedule, request.steps, "linspace", extra_point=True, total=used))
        sigmas = sigmas_at(levels, visited)
        if request.karras:
            sigmas = karras_sigmas(*karras_bounds(schedule, levels[-1], levels[0]), request.steps)
            visited = [timestep_of(levels, sigma) for sigma in sigmas]
            truncates = solver is not unipc and schedule.beta_schedule == "squaredcos_cap_v2"  # as in diffusers
            visited = [float(int(t)) for t in visited] if truncates else rounded(visited)
        if request.first >= len(visited):
            raise ValueError(f"strength {request.strength:g} of {request.steps} steps leaves none; give more")
        last = 0.0
        if schedule.final_sigmas_type == "sigma_min":
            last = sigmas[-1] if request.karras and solver is unipc else levels[0]
        visited, sigmas = visited[request.first :], [*sigmas, last][request.first :]
        signals = [1 / math.sqrt(1 + sigma**2) for sigma in sigmas[:-1]]
        predicted = denoised_weights if schedule.predict_x0 else noise_weights
        predictions = [
            predicted(schedule, signal, signal * sigma) for signal, sigma in zip(signals, sigmas[:-1], strict=True)
        ]
        return _vp_table(request, solver(request, visited, sigmas, predictions))

    return build


def _vp_row(
    timestep: float, alpha: float, denoised: tuple[float, float], x: Weights, anchor: Weights | None = None
) -> Evaluation:
    level = math.sqrt(alpha), math.sqrt(1 - alpha)
    return Evaluation(timestep=timestep, level=level, c_skip=denoised[0], c_out=denoised[1], x=x, anchor=anchor or {})


def _vp_table(request: SamplerRequest, rows: list[Evaluation], *, clip: float = math.inf) -> SamplerTable:
    return table_of(rows, start_noise=1.0 if request.strength is None else None, clip=clip)


def _transfer(alpha: float, alpha_next: float) -> tuple[float, float]:
    """Return the weights of latents and noise in the step from `alpha` to `alpha_next` (Liu et al. 2022, eq. 9)."""
    move = alpha * math.sqrt(1 - alpha_next) + math.sqrt(alpha * (1 - alpha) * alpha_next)
    return math.sqrt(alpha_next / alpha), -(alpha_next - alpha) / move
