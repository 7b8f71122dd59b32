"""The field's samplers, each a pure function from a noise schedule and a step count to a table.

Two spaces: the variance-preserving ones hold `signal * image + deviation * noise` with unit variance; the sigma ones
(Karras et al. 2022) hold `image + sigma * noise`, and scale the network's input back to unit variance.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pipeline.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, lms_weights, unipc
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.spacing import karras_sigmas, rounded, sigmas_at, timestep_of, timesteps, training_sigmas
from pipeline.diffusion.table import Evaluation, SamplerTable, Weights, table_of

LMS_ORDER: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerRequest:
    """What a sampler is asked for; `strength` is `None` for text to image."""

    schedule: NoiseScheduleConfig
    steps: int
    eta: float = 0.0
    strength: float | None = None
    karras: bool = False

    @property
    def first(self) -> int:
        """The first step that runs: image to image skips the noisiest part (Meng et al. 2022)."""
        if self.strength is None:
            return 0
        return self.steps - min(int(self.steps * self.strength), self.steps)


def sampler_table(
    schedule: NoiseScheduleConfig,
    sampler: str,
    num_inference_steps: int,
    *,
    eta: float = 0.0,
    strength: float | None = None,
) -> SamplerTable:
    """The table of a sampler of SAMPLERS; a ValueError says what of the request can't be.

    `strength` in (0, 1] starts from a noised picture and runs that part of the steps; `None` starts from noise.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; known are {', '.join(SAMPLERS)}")
    if not 1 <= num_inference_steps <= schedule.num_train_timesteps:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; give 1 to {schedule.num_train_timesteps}")
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"strength is {strength:g}; give more than 0, at most 1")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}; give 0 to 1")
    name = sampler.removesuffix("_karras")
    request = SamplerRequest(
        schedule=schedule, steps=num_inference_steps, eta=eta, strength=strength, karras=name != sampler
    )
    if request.first >= num_inference_steps:
        least = 1 / num_inference_steps
        raise ValueError(f"strength {strength:g} of {num_inference_steps} steps leaves none; give {least:g} or more")
    return SAMPLERS[sampler](request)


def ddim(request: SamplerRequest) -> SamplerTable:
    """Denoising diffusion implicit models (Song et al. 2021, eq. 12 and 16)."""
    schedule, alphas = request.schedule, request.schedule.alphas_cumprod().tolist()
    final = 1.0 if schedule.set_alpha_to_one in (None, True) else alphas[0]
    stride = schedule.num_train_timesteps // request.steps
    visited = [int(t) for t in rounded(timesteps(schedule, request.steps, "leading"))][request.first :]
    rows = []
    for timestep in visited:
        alpha, before = alphas[timestep], alphas[timestep - stride] if timestep >= stride else final
        signal, deviation = math.sqrt(alpha), math.sqrt(1 - alpha)
        variance = (1 - before) / (1 - alpha) * (1 - alpha / before)
        spread = request.eta * math.sqrt(variance)
        direction = math.sqrt(1 - before - spread**2)
        noise_skip, noise_out = _noise(schedule, signal, deviation)
        weights = {
            "p0": math.sqrt(before),
            "x": direction * noise_skip,
            "model_output": direction * noise_out,
            "noise": spread,
        }
        rows.append(_vp_row(timestep, alpha, _denoised(schedule, signal, deviation), weights))
    return _vp_table(request, rows, clip=_clip(schedule, default=True))


def ddpm(request: SamplerRequest) -> SamplerTable:
    """Denoising diffusion probabilistic models with the small variance (Ho et al. 2020, eq. 6 and 7)."""
    schedule, alphas = request.schedule, request.schedule.alphas_cumprod().tolist()
    visited = [int(t) for t in rounded(timesteps(schedule, request.steps, "leading"))]
    rows = []
    for index in range(request.first, len(visited)):
        timestep = visited[index]
        alpha, before = alphas[timestep], alphas[visited[index + 1]] if index + 1 < len(visited) else 1.0
        ratio = alpha / before
        weights = {
            "p0": math.sqrt(before) * (1 - ratio) / (1 - alpha),
            "x": math.sqrt(ratio) * (1 - before) / (1 - alpha),
            "noise": math.sqrt((1 - before) / (1 - alpha) * (1 - ratio)),
        }
        denoised = _denoised(schedule, math.sqrt(alpha), math.sqrt(1 - alpha))
        rows.append(_vp_row(timestep, alpha, denoised, weights))
    return _vp_table(request, rows, clip=_clip(schedule, default=True))


def pndm(request: SamplerRequest) -> SamplerTable:
    """Pseudo linear multistep (Liu et al. 2022, eq. 9 and 12) as Stable Diffusion 1 runs it: no Runge-Kutta start,
    but the second timestep evaluated twice."""
    schedule = request.schedule
    alphas = schedule.positive_alphas_cumprod().tolist()
    final = 1.0 if schedule.set_alpha_to_one else alphas[0]
    stride = schedule.num_train_timesteps // request.steps
    spaced = [int(t) for t in rounded(timesteps(schedule, request.steps, "leading"))]
    visited = [*spaced[:2], *spaced[1:]][request.first :]
    rows = []
    for index, timestep in enumerate(visited):
        here, there = (timestep + stride, timestep) if index == 1 else (timestep, timestep - stride)
        here = min(here, schedule.num_train_timesteps - 1)
        alpha, before = alphas[here], alphas[there] if there >= 0 else final
        keep, move = _transfer(alpha, before)
        if schedule.prediction_type == "v_prediction":
            keep, move = keep + move * math.sqrt(1 - alpha), move * math.sqrt(alpha)
        elif schedule.prediction_type == "sample":
            raise ValueError("sampler 'pndm' can't run a network that predicts the sample; take another")
        start = "anchor" if index == 1 else "x"
        weights = {start: keep} | {f"p{age}": move * part for age, part in enumerate(_plms(index))}
        rows.append(_vp_row(timestep, alphas[timestep], (0.0, 1.0), weights, {"x": 1.0} if index == 0 else {}))
    return _vp_table(request, rows)


def euler(request: SamplerRequest) -> SamplerTable:
    """Euler's method on the probability flow (Karras et al. 2022, algorithm 1 without its second-order step)."""
    visited, sigmas = _sigma_steps(request)
    rows = []
    for index in range(request.first, request.steps):
        ratio = sigmas[index + 1] / sigmas[index]
        rows.append(_sigma_row(request, visited[index], sigmas[index], {"x": ratio, "p0": 1 - ratio}))
    return _sigma_table(request, rows, sigmas)


def euler_a(request: SamplerRequest) -> SamplerTable:
    """Ancestral sampling by Euler steps: down to a lower level, and up again by fresh noise (k-diffusion)."""
    visited, sigmas = _sigma_steps(request)
    rows = []
    for index in range(request.first, request.steps):
        here, there = sigmas[index], sigmas[index + 1]
        up = math.sqrt(there**2 * (here**2 - there**2) / here**2)
        ratio = math.sqrt(there**2 - up**2) / here
        weights = {"x": ratio, "p0": 1 - ratio, "noise": up}
        rows.append(_sigma_row(request, visited[index], here, weights))
    return _sigma_table(request, rows, sigmas)


def heun(request: SamplerRequest) -> SamplerTable:
    """Heun's method: an Euler step, corrected by the slope at its end (Karras et al. 2022, algorithm 1)."""
    visited, sigmas = _sigma_steps(request)
    rows = []
    for index in range(request.first, request.steps):
        here, there = sigmas[index], sigmas[index + 1]
        ratio = there / here
        rows.append(_sigma_row(request, visited[index], here, {"x": ratio, "p0": 1 - ratio}, {"x": 1.0}))
        if there > 0:
            first, second = (there - here) / (2 * here), (there - here) / (2 * there)
            weights = {"anchor": 1 + first, "p1": -first, "x": second, "p0": -second}
            rows.append(_sigma_row(request, visited[index + 1], there, weights))
    return _sigma_table(request, rows, sigmas, clip=_clip(request.schedule, default=False))


def lms(request: SamplerRequest) -> SamplerTable:
    """Linear multistep of order 4 (Adams and Bashforth), on the slopes at the last four noise levels (k-diffusion)."""
    visited, sigmas = _sigma_steps(request)
    rows = []
    for index in range(request.first, request.steps):
        past = sigmas[max(request.first, index - LMS_ORDER + 1) : index + 1][::-1]
        parts = lms_weights(past, sigmas[index + 1])
        weights = {"x": 1.0} | {f"p{age}": part for age, part in enumerate(parts)}
        rows.append(_slope_row(request, visited[index], sigmas[index], weights))
    return _sigma_table(request, rows, sigmas)


def _multistep(solver: Callable[..., list[Evaluation]]) -> Callable[[SamplerRequest], SamplerTable]:
    """A solver in half log-SNR on the variance-preserving process, over the levels that the request spaces."""

    def build(request: SamplerRequest) -> SamplerTable:
        levels = training_sigmas(request.schedule)
        visited = rounded(timesteps(request.schedule, request.steps, "linspace", extra_point=True))
        sigmas = sigmas_at(levels, visited)
        if request.karras:
            sigmas = karras_sigmas(levels[-1], levels[0], request.steps)
            visited = [timestep_of(levels, sigma) for sigma in sigmas]
            cut = solver is not unipc and request.schedule.beta_schedule == "squaredcos_cap_v2"  # as diffusers does
            visited = [float(int(t)) for t in visited] if cut else rounded(visited)
        visited, sigmas = visited[request.first :], [*sigmas, 0.0][request.first :]
        signals = [1 / math.sqrt(1 + sigma**2) for sigma in sigmas]
        predictions = [
            _denoised(request.schedule, signal, signal * sigma) for signal, sigma in zip(signals, sigmas, strict=True)
        ]
        return _vp_table(request, solver(visited, sigmas, predictions))

    return build


def _denoised(schedule: NoiseScheduleConfig, signal: float, deviation: float) -> tuple[float, float]:
    """Weights of latents and model output in the predicted image latents (Salimans and Ho 2022, appendix D)."""
    if schedule.prediction_type == "v_prediction":
        return signal, -deviation
    if schedule.prediction_type == "sample":
        return 0.0, 1.0
    if signal == 0:
        raise ValueError("a schedule of zero terminal SNR needs v_prediction or sample; this network predicts epsilon")
    return 1 / signal, -deviation / signal


def _noise(schedule: NoiseScheduleConfig, signal: float, deviation: float) -> tuple[float, float]:
    """Weights of latents and model output in the predicted noise."""
    if schedule.prediction_type == "v_prediction":
        return deviation, signal
    if schedule.prediction_type == "sample":
        return 1 / deviation, -signal / deviation
    return 0.0, 1.0


def _clip(schedule: NoiseScheduleConfig, *, default: bool) -> float:
    clips = default if schedule.clip_sample is None else schedule.clip_sample
    return schedule.clip_sample_range if clips else math.inf


def _vp_row(
    timestep: float, alpha: float, kept: tuple[float, float], x: Weights, anchor: Weights | None = None
) -> Evaluation:
    level = math.sqrt(alpha), math.sqrt(1 - alpha)
    return Evaluation(timestep=timestep, level=level, skip=kept[0], out=kept[1], x=x, anchor=anchor or {})


def _vp_table(request: SamplerRequest, rows: list[Evaluation], *, clip: float = math.inf) -> SamplerTable:
    return table_of(rows, start_noise=1.0 if request.strength is None else None, clip=clip)


def _transfer(alpha: float, before: float) -> tuple[float, float]:
    """Weights of latents and noise in the step from `alpha` to `before` (Liu et al. 2022, eq. 9)."""
    move = alpha * math.sqrt(1 - before) + math.sqrt(alpha * (1 - alpha) * before)
    return math.sqrt(before / alpha), -(before - alpha) / move


def _plms(index: int) -> tuple[float, ...]:
    """Weights of the newest predictions at evaluation `index`; the second only repeats the first step."""
    parts = (
        (1,),
        (1 / 2, 1 / 2),
        (3 / 2, 0, -1 / 2),
        (23 / 12, -16 / 12, 0, 5 / 12),
        (55 / 24, -59 / 24, 37 / 24, 0, -9 / 24),
        (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    )
    return parts[min(index, len(parts) - 1)]


def _sigma_steps(request: SamplerRequest) -> tuple[list[float], list[float]]:
    """Timesteps (n) and noise levels (n + 1, the last one zero)."""
    levels = training_sigmas(request.schedule)
    visited = timesteps(request.schedule, request.steps, "linspace")
    sigmas = sigmas_at(levels, visited)
    if request.karras:
        sigmas = karras_sigmas(sigmas[0], sigmas[-1], request.steps)
        visited = [timestep_of(levels, sigma) for sigma in sigmas]
    return visited, [*sigmas, 0.0]


def _sigma_row(
    request: SamplerRequest, timestep: float, sigma: float, x: Weights, anchor: Weights | None = None
) -> Evaluation:
    """An evaluation whose kept prediction is the denoised latents."""
    skip, out = _sigma_denoised(request.schedule, sigma)
    scale = 1 / math.sqrt(sigma**2 + 1)
    return Evaluation(
        timestep=timestep, level=(1.0, sigma), input_scale=scale, skip=skip, out=out, x=x, anchor=anchor or {}
    )


def _slope_row(request: SamplerRequest, timestep: float, sigma: float, x: Weights) -> Evaluation:
    """An evaluation whose kept prediction is the slope dx/dsigma = (x - denoised) / sigma."""
    row = _sigma_row(request, timestep, sigma, x)
    return replace(row, skip=(1 - row.skip) / sigma, out=-row.out / sigma)


def _sigma_denoised(schedule: NoiseScheduleConfig, sigma: float) -> tuple[float, float]:
    """As `_denoised`, of latents in the sigma space."""
    if schedule.prediction_type == "epsilon":
        return 1.0, -sigma
    if schedule.prediction_type == "v_prediction":
        return 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1)
    return 0.0, 1.0


def _sigma_table(
    request: SamplerRequest, rows: list[Evaluation], sigmas: list[float], *, clip: float = math.inf
) -> SamplerTable:
    if request.strength is not None:
        return table_of(rows, clip=clip)
    highest = max(sigmas)
    leading = request.schedule.timestep_spacing == "leading"
    return table_of(rows, start_noise=math.sqrt(highest**2 + 1) if leading else highest, clip=clip)


SAMPLERS: Final[dict[str, Callable[[SamplerRequest], SamplerTable]]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "pndm": pndm,
    "euler": euler,
    "euler_karras": euler,
    "euler_a": euler_a,
    "heun": heun,
    "heun_karras": heun,
    "lms": lms,
    "lms_karras": lms,
    "dpmpp_2m": _multistep(dpmpp_2m),
    "dpmpp_2m_karras": _multistep(dpmpp_2m),
    "dpmpp_2m_sde": _multistep(dpmpp_2m_sde),
    "dpmpp_2m_sde_karras": _multistep(dpmpp_2m_sde),
    "unipc": _multistep(unipc),
    "unipc_karras": _multistep(unipc),
}
"""Every sampler by name; `_karras` ones take the noise levels of Karras et al. 2022, eq. 5."""
