"""Prediction types: the denoised latents and the noise as linear functions of latents and model output."""

import math

from pipeline.diffusion.schedule import NoiseScheduleConfig


def denoised_weights(schedule: NoiseScheduleConfig, signal: float, deviation: float) -> tuple[float, float]:
    """Return the weights of latents and model output in the denoised latents (Salimans and Ho 2022, appendix D)."""
    if schedule.prediction_type == "v_prediction":
        return signal, -deviation
    if schedule.prediction_type == "sample":
        return 0.0, 1.0
    if signal == 0:
        raise ValueError(
            "scheduler rescale_betas_zero_snr True needs prediction_type v_prediction or sample; the network predicts "
            "epsilon"
        )
    return 1 / signal, -deviation / signal


def noise_weights(schedule: NoiseScheduleConfig, signal: float, deviation: float) -> tuple[float, float]:
    """Return the weights of latents and model output in the predicted noise."""
    if schedule.prediction_type == "v_prediction":
        return deviation, signal
    if schedule.prediction_type == "sample":
        return 1 / deviation, -signal / deviation
    return 0.0, 1.0


def sigma_denoised_weights(schedule: NoiseScheduleConfig, sigma: float) -> tuple[float, float]:
    """As `denoised_weights`, for latents in the sigma space (`image + sigma * noise`)."""
    if schedule.prediction_type == "epsilon":
        return 1.0, -sigma
    if schedule.prediction_type == "v_prediction":
        return 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1)
    return 0.0, 1.0


def clip_range(schedule: NoiseScheduleConfig, *, default: bool) -> float:
    """Return the range to which denoised predictions are clamped; infinite where they are not.

    `default` says whether a sampler clamps where the schedule's config is silent."""
    clips = default if schedule.clip_sample is None else schedule.clip_sample
    return schedule.clip_sample_range if clips else math.inf
