"""Samplers of consistency models: the few-step networks that predict the end of the trajectory."""

import math

import torch

from pipeline.diffusion.prediction import clip_range, denoised_weights, noise_weights
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.table import SamplerTable
from pipeline.diffusion.vp_samplers import vp_row, vp_table

_SIGMA_DATA = 0.5


def lcm(request: SamplerRequest) -> SamplerTable:
    """Latent consistency models (Luo et al. 2023, algorithm 3): fresh noise after all steps but the last."""
    schedule, alphas = request.schedule, request.schedule.alphas_cumprod().tolist()
    visited = distilled_timesteps(schedule, request.steps, request.distilled_part)
    rows = []
    for index in range(request.first, request.steps):
        timestep, is_last = visited[index], index + 1 == request.steps
        scaled = timestep * schedule.timestep_scaling
        c_skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        c_out = scaled / math.sqrt(scaled**2 + _SIGMA_DATA**2)
        alpha = alphas[timestep]
        signal, noise = (1.0, 0.0) if is_last else _level(alphas[visited[index + 1]])
        weights = {"x": signal * c_skip, "p0": signal * c_out, "noise": noise}
        rows.append(vp_row(timestep, alpha, denoised_weights(schedule, *_level(alpha)), weights))
    return vp_table(request, rows, clip=clip_range(schedule, default=False))


def tcd(request: SamplerRequest) -> SamplerTable:
    """Trajectory consistency distillation (Zheng et al. 2024, algorithm 4), with its gamma as `eta`."""
    schedule, alphas = request.schedule, request.schedule.alphas_cumprod().tolist()
    visited = distilled_timesteps(schedule, request.steps, request.distilled_part)
    rows = []
    for index in range(request.first, request.steps):
        timestep, is_last = visited[index], index + 1 == request.steps
        timestep_next = 0 if is_last else visited[index + 1]
        stop = int(((1 - request.eta) * torch.tensor(timestep_next)).floor())  # in float32, as in diffusers
        alpha, ratio = alphas[timestep], 1.0 if is_last else alphas[timestep_next] / alphas[stop]
        signal, deviation = _level(alphas[stop])
        noise_x, noise_output = noise_weights(schedule, *_level(alpha))
        scale = 1.0 if request.eta == 0 else math.sqrt(ratio)
        weights = {
            "p0": scale * signal,
            "x": scale * deviation * noise_x,
            "model_output": scale * deviation * noise_output,
            "noise": math.sqrt(max(1 - ratio, 0.0)),
        }
        rows.append(vp_row(timestep, alpha, denoised_weights(schedule, *_level(alpha)), weights))
    return vp_table(request, rows)


def distilled_timesteps(schedule: NoiseScheduleConfig, steps: int, part: float = 1.0) -> list[int]:
    """Return `steps` falling timesteps of the least noisy `part` of those that the network was distilled at.

    ValueError if there are not so many."""
    stride = schedule.num_train_timesteps // schedule.original_inference_steps
    count = int(schedule.original_inference_steps * part)
    if steps > count:
        of_part = "" if part == 1 else f" times the strength {part:g}"
        raise ValueError(
            f"num_inference_steps is {steps}; give at most {count}, the scheduler's original_inference_steps{of_part}"
        )
    distilled = [number * stride - 1 for number in range(count, 0, -1)]
    return [distilled[index * count // steps] for index in range(steps)]


def _level(alpha: float) -> tuple[float, float]:
    return math.sqrt(alpha), math.sqrt(1 - alpha)
