"""All samplers by name, each a pure function from a noise schedule and a step count to a sampler table."""

from collections.abc import Callable
from typing import Final

from pipeline.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, unipc
from pipeline.diffusion.sampler_request import SamplerRequest
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.diffusion.sigma_samplers import euler, euler_a, heun, lms
from pipeline.diffusion.table import SamplerTable
from pipeline.diffusion.vp_samplers import ddim, ddpm, pndm, sampler_of_solver

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
    "dpmpp_2m": sampler_of_solver(dpmpp_2m),
    "dpmpp_2m_karras": sampler_of_solver(dpmpp_2m),
    "dpmpp_2m_sde": sampler_of_solver(dpmpp_2m_sde),
    "dpmpp_2m_sde_karras": sampler_of_solver(dpmpp_2m_sde),
    "unipc": sampler_of_solver(unipc),
    "unipc_karras": sampler_of_solver(unipc),
}
"""Every sampler by name; those with `_karras` use the noise levels of Karras et al. 2022, eq. 5."""


def check_sampler(schedule: NoiseScheduleConfig, sampler: str) -> None:
    """Raise ValueError if there is no sampler of this name, or if it does not support the schedule's options."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; known are {', '.join(SAMPLERS)}")
    schedule.for_sampler(sampler)


def sampler_table(
    schedule: NoiseScheduleConfig,
    sampler: str,
    num_inference_steps: int,
    *,
    eta: float = 0.0,
    strength: float | None = None,
) -> SamplerTable:
    """Return the table of a sampler by its name in SAMPLERS.

    `strength` in (0, 1] starts from a noised image and runs that part of the steps; None starts from noise.
    ValueError if an input is out of its range, or if the sampler cannot run on this schedule.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; known are {', '.join(SAMPLERS)}")
    if not 1 <= num_inference_steps <= schedule.num_train_timesteps:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; give 1 to {schedule.num_train_timesteps}")
    if strength is not None and not 0 < strength <= 1:
        raise ValueError(f"strength is {strength:g}; give more than 0, at most 1")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta:g}; give 0 to 1")
    schedule = schedule.for_sampler(sampler)
    name = sampler.removesuffix("_karras")
    request = SamplerRequest(
        schedule=schedule, steps=num_inference_steps, eta=eta, strength=strength, karras=name != sampler
    )
    if request.first >= num_inference_steps:
        least = 1 / num_inference_steps
        raise ValueError(f"strength {strength:g} of {num_inference_steps} steps leaves none; give {least:g} or more")
    return SAMPLERS[sampler](request)
