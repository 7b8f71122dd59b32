"""Samplers on the variance-preserving process, whose latents are `signal * image + deviation * noise`."""

import math
from collections.abc import Callable

from pipeline.diffusion.multistep import unipc
from pipeline.diffusion.prediction import clip_range, denoised_weights, noise_weights
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.spacing import karras_sigmas, rounded, sigmas_at, timestep_of, timesteps, training_sigmas
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
        variance = (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
        spread = request.eta * math.sqrt(variance)
        direction = math.sqrt(1 - alpha_next - spread**2)
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
    """Denoising diffusion probabilistic models with the small variance (Ho et al. 2020, eq. 6 and 7)."""
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
            "noise": math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - ratio)),
        }
        denoised = denoised_weights(schedule, math.sqrt(alpha), math.sqrt(1 - alpha))
        rows.append(_vp_row(timestep, alpha, denoised, weights))
    return _vp_table(request, rows, clip=clip_range(schedule, default=True))


def pndm(request: SamplerRequest) -> SamplerTable:
    """Pseudo linear multistep (Liu et al. 2022, eq. 9 and 12) without the Runge-Kutta start, as Stable Diffusion 1.

    The second timestep is evaluated twice instead (diffusers' `skip_prk_steps`)."""
    schedule = request.schedule
    alphas = schedule.positive_alphas_cumprod().tolist()
    final = 1.0 if schedule.set_alpha_to_one else alphas[0]
    stride = schedule.num_train_timesteps // request.steps
    spaced = [int(t) for t in rounded(timesteps(schedule, request.steps, "leading"))]
    visited = [*spaced[:2], *spaced[1:]][request.first :]
    rows = []
    for index, timestep in enumerate(visited):
        start, end = (timestep + stride, timestep) if index == 1 else (timestep, timestep - stride)
        start = min(start, schedule.num_train_timesteps - 1)
        alpha, alpha_next = alphas[start], alphas[end] if end >= 0 else final
        keep, move = _transfer(alpha, alpha_next)
        if schedule.prediction_type == "v_prediction":
            keep, move = keep + move * math.sqrt(1 - alpha), move * math.sqrt(alpha)
        elif schedule.prediction_type == "sample":
            raise ValueError("sampler pndm cannot run a network that predicts the sample; give another sampler")
        base = "anchor" if index == 1 else "x"
        weights = {base: keep} | {f"p{age}": move * part for age, part in enumerate(_plms(index))}
        rows.append(_vp_row(timestep, alphas[timestep], (0.0, 1.0), weights, {"x": 1.0} if index == 0 else {}))
    return _vp_table(request, rows)


def multistep(solver: Callable[..., list[Evaluation]]) -> Callable[[SamplerRequest], SamplerTable]:
    """Return the sampler of a multistep solver, which works in half log-SNR (Lu et al. 2022)."""

    def build(request: SamplerRequest) -> SamplerTable:
        levels = training_sigmas(request.schedule)
        visited = rounded(timesteps(request.schedule, request.steps, "linspace", extra_point=True))
        sigmas = sigmas_at(levels, visited)
        if request.karras:
            sigmas = karras_sigmas(levels[-1], levels[0], request.steps)
            visited = [timestep_of(levels, sigma) for sigma in sigmas]
            truncates = solver is not unipc and request.schedule.beta_schedule == "squaredcos_cap_v2"  # as in diffusers
            visited = [float(int(t)) for t in visited] if truncates else rounded(visited)
        visited, sigmas = visited[request.first :], [*sigmas, 0.0][request.first :]
        signals = [1 / math.sqrt(1 + sigma**2) for sigma in sigmas]
        predictions = [
            denoised_weights(request.schedule, signal, signal * sigma)
            for signal, sigma in zip(signals, sigmas, strict=True)
        ]
        return _vp_table(request, solver(visited, sigmas, predictions))

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


def _plms(index: int) -> tuple[float, ...]:
    """Return the weights of the newest predictions at evaluation `index`; evaluation 1 repeats the first step."""
    parts = (
        (1,),
        (1 / 2, 1 / 2),
        (3 / 2, 0, -1 / 2),
        (23 / 12, -16 / 12, 0, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, 0, -9 / 24),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    )
    return parts[min(index, len(parts) - 1)]
