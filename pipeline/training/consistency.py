"""Latent consistency distillation (Luo et al. 2023): the formulas, on latents (B, C, h, w).

A consistency function maps the latents at any timestep of a trajectory of the teacher to its start, in one evaluation.
"""

from typing import Final

import torch
from torch import Tensor

from pipeline.training.denoising import per_image

SIGMA_DATA: Final = 0.5
"""The standard deviation of the latents in the boundary scalings."""
TIMESTEP_SCALING: Final = 10.0
"""The factor of the timesteps in the boundary scalings, `timestep_scaling` in diffusers' LCMScheduler."""


def boundary_scalings(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out (B,), which are 1 and 0 at timestep 0 (Luo et al. 2023, section 4.1)."""
    scaled = TIMESTEP_SCALING * timesteps.float()
    squares = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / squares, scaled / squares.sqrt()


def denoised_and_noise(
    model_output: Tensor, noisy: Tensor, alphas: Tensor, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """Return the predicted clean latents and noise; `alphas` are cumulative, (B,)."""
    signal, deviation = per_image(alphas.sqrt()), per_image((1 - alphas).sqrt())
    if prediction_type == "v_prediction":
        return signal * noisy - deviation * model_output, deviation * noisy + signal * model_output
    if prediction_type == "sample":
        return model_output, (noisy - signal * model_output) / deviation
    return (noisy - deviation * model_output) / signal, model_output


def consistency_function(
    model_output: Tensor, noisy: Tensor, timesteps: Tensor, alphas: Tensor, prediction_type: str
) -> Tensor:
    """Return the latents that the network predicts for the start of the trajectory (Luo et al. 2023, equation 9)."""
    denoised, _ = denoised_and_noise(model_output, noisy, alphas, prediction_type)
    c_skip, c_out = boundary_scalings(timesteps)
    return per_image(c_skip) * noisy + per_image(c_out) * denoised


def ddim_step(model_output: Tensor, noisy: Tensor, alphas: Tensor, next_alphas: Tensor, prediction_type: str) -> Tensor:
    """Return the latents at the cumulative `next_alphas` (B,) after a deterministic step (Song et al. 2021, eq. 12)."""
    denoised, noise = denoised_and_noise(model_output, noisy, alphas, prediction_type)
    return per_image(next_alphas.sqrt()) * denoised + per_image((1 - next_alphas).sqrt()) * noise


def pseudo_huber(values: Tensor, targets: Tensor, c: float) -> Tensor:
    """Return the mean pseudo-Huber distance: quadratic below `c`, linear above (Song and Dhariwal 2023)."""
    return (((values - targets).square() + c**2).sqrt() - c).mean()


def sample_timestep_pairs(
    count: int, num_timesteps: int, *, grid: int, skip: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample timesteps (B,) from those of the LCM sampler, `grid - 1`, `2 * grid - 1`, ..., and `skip` before each.

    The second are at least 0 (Luo et al. 2023, section 4.3)."""
    timesteps = grid * (1 + torch.randint(num_timesteps // grid, (count,), generator=generator)) - 1
    return timesteps, (timesteps - skip).clamp_min(0)
