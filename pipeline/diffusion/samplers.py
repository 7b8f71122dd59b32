"""All samplers by name, each a pure function from a noise schedule and a step count to a sampler table."""

from collections.abc import Callable
from typing import Final

from pipeline.diffusion.catalog import CATALOG, all_names, canonical_name, split_name
from pipeline.diffusion.consistency_samplers import lcm, tcd
from pipeline.diffusion.deis import deis
from pipeline.diffusion.dpm_solver import dpm_multistep, dpm_singlestep
from pipeline.diffusion.options import NOISE_ALGORITHMS
from pipeline.diffusion.sa_solver import sa_solver
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.sigma_samplers import euler, euler_a, heun, kdpm2, kdpm2_a, lms
from pipeline.diffusion.table import SamplerTable
from pipeline.diffusion.unipc import unipc
from pipeline.diffusion.vp_samplers import ddim, ddpm, ipndm, pndm, sampler_of_solver


def _of_algorithm(schedule: NoiseScheduleConfig) -> bool:
    return schedule.algorithm_type in NOISE_ALGORITHMS


def _zero_or_least(schedule: NoiseScheduleConfig, spaced: float, least: float) -> float:
    """Return DPM-Solver's last noise level; its forms that predict noise cannot end at zero."""
    return least if (schedule.final_sigmas_type or "zero") == "sigma_min" or _of_algorithm(schedule) else 0.0


_SAMPLER_OF_SCHEDULER: Final[dict[str, Callable[[SamplerRequest], SamplerTable]]] = {
    "DDPMScheduler": ddpm,
    "DDIMScheduler": ddim,
    "PNDMScheduler": pndm,
    "IPNDMScheduler": ipndm,
    "EulerDiscreteScheduler": euler,
    "EulerAncestralDiscreteScheduler": euler_a,
    "HeunDiscreteScheduler": heun,
    "LMSDiscreteScheduler": lms,
    "KDPM2DiscreteScheduler": kdpm2,
    "KDPM2AncestralDiscreteScheduler": kdpm2_a,
    "DPMSolverMultistepScheduler": sampler_of_solver(
        dpm_multistep,
        predicts_noise=_of_algorithm,
        last_sigma=_zero_or_least,
        truncates=lambda schedule: schedule.beta_schedule == "squaredcos_cap_v2",
    ),
    "DPMSolverSinglestepScheduler": sampler_of_solver(
        dpm_singlestep, predicts_noise=_of_algorithm, last_sigma=_zero_or_least
    ),
    "DEISMultistepScheduler": sampler_of_solver(
        deis, predicts_noise=lambda schedule: True, last_sigma=lambda schedule, spaced, least: spaced
    ),
    "UniPCMultistepScheduler": sampler_of_solver(
        unipc,
        predicts_noise=lambda schedule: not schedule.predict_x0,
        last_sigma=lambda schedule, spaced, least: spaced if schedule.final_sigmas_type == "sigma_min" else 0.0,
    ),
    "SASolverScheduler": sampler_of_solver(
        sa_solver, predicts_noise=_of_algorithm, last_sigma=lambda schedule, spaced, least: spaced
    ),
    "LCMScheduler": lcm,
    "TCDScheduler": tcd,
}
"""By the class in diffusers; `catalog.py` has the names."""

SAMPLERS: Final = {name: _SAMPLER_OF_SCHEDULER[CATALOG[split_name(name)[0]].scheduler] for name in all_names()}
"""Every sampler by name, with and without the suffix of a spacing of noise levels."""


def check_sampler(schedule: NoiseScheduleConfig, sampler: str) -> None:
    """Raise ValueError if there is no sampler of this name, or if it does not support the schedule's options."""
    schedule.for_sampler(canonical_name(sampler))


def sampler_table(
    schedule: NoiseScheduleConfig,
    sampler: str,
    num_inference_steps: int,
    *,
    eta: float = 0.0,
    strength: float | None = None,
    distilled_part: float = 1.0,
) -> SamplerTable:
    """Return the table of a sampler by its name in SAMPLERS, in any spelling that `canonical_name` takes.

    `strength` in (0, 1] starts from a noised image and runs that part of the steps; None starts from noise.
    `distilled_part` is the part of a consistency model's timesteps, from the least noisy, that its steps are among.
    ValueError if an input is out of its range, or if the sampler cannot run on this schedule.
    """
    sampler = canonical_name(sampler)
    if not 1 <= num_inference_steps <= schedule.num_train_timesteps:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; give 1 to {schedule.num_train_timesteps}")
    for part in (strength, distilled_part):
        if part is not None and not 0 < part <= 1:
            raise ValueError(f"strength is {part:g}; give more than 0, at most 1")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}; give 0 to 1")
    request = SamplerRequest(
        schedule=schedule.for_sampler(sampler),
        steps=num_inference_steps,
        eta=eta,
        strength=strength,
        distilled_part=distilled_part,
        spacing=split_name(sampler)[1],
    )
    if request.first >= num_inference_steps:
        least = 1 / num_inference_steps
        raise ValueError(f"strength {strength:g} of {num_inference_steps} steps leaves none; give {least:g} or more")
    return SAMPLERS[sampler](request)
