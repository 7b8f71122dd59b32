"""Samplers in the sigma space of Karras et al. 2022, whose latents are `image + sigma * noise`.

The network's input is scaled back to unit variance (c_in).
"""

import math
from dataclasses import replace
from typing import Final

from pipeline.diffusion.multistep import lms_weights
from pipeline.diffusion.prediction import clip_range, sigma_denoised_weights
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.spacing import (
    exponential_sigmas,
    rounded,
    sigmas_at,
    spaced_sigmas,
    timestep_of,
    timesteps,
    training_sigmas,
)
from pipeline.diffusion.table import Evaluation, SamplerTable, Weights, table_of

LMS_ORDER: Final = 4


def euler(request: SamplerRequest) -> SamplerTable:
    """Euler's method on the probability flow (Karras et al. 2022, algorithm 1 without its second-order step)."""
    visited, sigmas = _sigma_steps(request)
    rows = []
    for index in range(request.first, request.steps):
        ratio = sigmas[index + 1] / sigmas[index]
        rows.append(_sigma_row(request, visited[index], sigmas[index], {"x": ratio, "p0": 1 - ratio}))
    return _sigma_table(request, rows, sigmas)


def euler_a(request: SamplerRequest) -> SamplerTable:
    """Ancestral Euler: a step below the next noise level, then fresh noise up to it (k-diffusion)."""
    visited, sigmas = _sigma_steps(request)
    rows = []
    for index in range(request.first, request.steps):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        up = math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2)
        ratio = math.sqrt(sigma_next**2 - up**2) / sigma
        weights = {"x": ratio, "p0": 1 - ratio, "noise": up}
        rows.append(_sigma_row(request, visited[index], sigma, weights))
    return _sigma_table(request, rows, sigmas)


def heun(request: SamplerRequest) -> SamplerTable:
    """Heun's method: an Euler step, corrected by the slope at its end (Karras et al. 2022, algorithm 1)."""
    visited, sigmas = _sigma_steps(request)
    rows = []
    for index in range(request.first, request.steps):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        ratio = sigma_next / sigma
        rows.append(_sigma_row(request, visited[index], sigma, {"x": ratio, "p0": 1 - ratio}, {"x": 1.0}))
        if sigma_next > 0:
            first, second = (sigma_next - sigma) / (2 * sigma), (sigma_next - sigma) / (2 * sigma_next)
            weights = {"anchor": 1 + first, "p1": -first, "x": second, "p0": -second}
            rows.append(_sigma_row(request, visited[index + 1], sigma_next, weights))
    return _sigma_table(request, rows, sigmas, clip=clip_range(request.schedule, default=False))


def kdpm2(request: SamplerRequest) -> SamplerTable:
    """DPM-Solver-2: a step with the slope at its middle, in the logarithm (Karras et al. 2022, algorithm 2)."""
    return _midpoint_table(request, ancestral=False)


def kdpm2_a(request: SamplerRequest) -> SamplerTable:
    """Ancestral DPM-Solver-2: a step below the next noise level, then fresh noise up to it (k-diffusion)."""
    return _midpoint_table(request, ancestral=True)


def _midpoint_table(request: SamplerRequest, *, ancestral: bool) -> SamplerTable:
    """In the level of its midpoint evaluations, which inpainting takes for known latents, it agrees with diffusers."""
    visited, sigmas = _sigma_steps(request)
    visited = rounded(visited) if request.spacing == "karras" else visited  # as in diffusers
    levels, rows = training_sigmas(request.schedule), []
    for index in range(request.first, request.steps):
        sigma, sigma_next = sigmas[index], sigmas[index + 1]
        if sigma_next == 0:
            rows.append(_sigma_row(request, visited[index], sigma, {"p0": 1.0}))
            continue
        up = math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) if ancestral else 0.0
        down = math.sqrt(sigma_next**2 - up**2)
        middle = math.sqrt(sigma * down)
        ratio, slope = middle / sigma, (down - sigma) / middle
        rows.append(_sigma_row(request, visited[index], sigma, {"x": ratio, "p0": 1 - ratio}, {"x": 1.0}))
        row = _sigma_row(
            request, timestep_of(levels, middle), middle, {"anchor": 1.0, "x": slope, "p0": -slope, "noise": up}
        )
        rows.append(replace(row, level=(1.0, sigma_next)))
    return _sigma_table(request, rows, sigmas)


def lms(request: SamplerRequest) -> SamplerTable:
    """Linear multistep of order 4 (Adams and Bashforth), on the slopes at the last four noise levels (k-diffusion).

    Started halfway (image to image), the first steps use the slopes that there are, in a lower order. diffusers takes
    the weights of four slopes for the one, two or three that it has: they do not add up to the step, and its images
    stay noisy."""
    if request.spacing == "karras":  # whose bounds diffusers takes from the timesteps, unlike those of other spacings
        request = replace(request, schedule=replace(request.schedule, sigma_min=None, sigma_max=None))
    visited, sigmas = _sigma_steps(request)
    rows = []
    for index in range(request.first, request.steps):
        past = sigmas[max(request.first, index - LMS_ORDER + 1) : index + 1][::-1]
        parts = lms_weights(past, sigmas[index + 1])
        weights = {"x": 1.0} | {f"p{age}": part for age, part in enumerate(parts)}
        rows.append(_slope_row(request, visited[index], sigmas[index], weights))
    return _sigma_table(request, rows, sigmas)


def _sigma_steps(request: SamplerRequest) -> tuple[list[float], list[float]]:
    """Return the timesteps (n) and the noise levels (n + 1, the last one zero or the least of training)."""
    schedule, levels = request.schedule, training_sigmas(request.schedule)
    visited = timesteps(schedule, request.steps, "linspace")
    sigmas = sigmas_at(levels, visited)
    last = levels[0] if schedule.final_sigmas_type == "sigma_min" else 0.0
    if schedule.interpolation_type == "log_linear":
        sigmas = exponential_sigmas(levels[-1], levels[0], request.steps + 1)
    if request.spacing is not None:
        sigmas = spaced_sigmas(request.spacing, schedule, sigmas[0], sigmas[-1], request.steps)
        visited = [timestep_of(levels, sigma) for sigma in sigmas]
    if schedule.timestep_type == "continuous" and schedule.prediction_type == "v_prediction":
        visited = [0.25 * math.log(sigma) for sigma in sigmas[: request.steps]]  # Karras et al. 2022, table 1, c_noise
    return visited, [*sigmas, last]


def _sigma_row(
    request: SamplerRequest, timestep: float, sigma: float, x: Weights, anchor: Weights | None = None
) -> Evaluation:
    """Return an evaluation whose prediction is the denoised latents."""
    c_skip, c_out = sigma_denoised_weights(request.schedule, sigma)
    c_in = 1 / math.sqrt(sigma**2 + 1)
    return Evaluation(
        timestep=timestep, level=(1.0, sigma), c_in=c_in, c_skip=c_skip, c_out=c_out, x=x, anchor=anchor or {}
    )


def _slope_row(request: SamplerRequest, timestep: float, sigma: float, x: Weights) -> Evaluation:
    """Return an evaluation whose prediction is the slope dx/dsigma = (x - denoised) / sigma."""
    row = _sigma_row(request, timestep, sigma, x)
    return replace(row, c_skip=(1 - row.c_skip) / sigma, c_out=-row.c_out / sigma)


def _sigma_table(
    request: SamplerRequest, rows: list[Evaluation], sigmas: list[float], *, clip: float = math.inf
) -> SamplerTable:
    if request.strength is not None:
        return table_of(rows, clip=clip)
    highest = max(sigmas)
    leading = request.schedule.timestep_spacing == "leading"
    return table_of(rows, start_noise=math.sqrt(highest**2 + 1) if leading else highest, clip=clip)
