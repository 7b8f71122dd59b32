"""The denoising objective: identities between the prediction types."""

import torch
from torch import Tensor

from pipeline.training.denoising import add_noise, denoising_target, min_snr_weights, sample_timesteps


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_latents_and_noise_follow_from_noisy_latents_and_velocity() -> None:
    latents, noise = random_tensor(3, 4, 2, 2), random_tensor(3, 4, 2, 2, seed=1)
    alphas = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    noisy, velocity = add_noise(latents, noise, alphas), denoising_target(latents, noise, alphas, "v_prediction")
    signal, deviation = alphas.sqrt()[:, None, None, None], (1 - alphas).sqrt()[:, None, None, None]
    torch.testing.assert_close(signal * noisy - deviation * velocity, latents)
    torch.testing.assert_close(deviation * noisy + signal * velocity, noise)


def test_min_snr_weights_are_equivalent_for_every_prediction_type() -> None:
    """A squared error e of the noise is an error e / snr of the latents; of the velocity, e / (snr + 1)."""
    alphas = torch.tensor([0.05, 0.5, 0.9, 0.99], dtype=torch.float64)
    snr = alphas / (1 - alphas)
    sample = min_snr_weights(alphas, 5.0, "sample")
    torch.testing.assert_close(sample, snr.clamp_max(5.0))
    torch.testing.assert_close(min_snr_weights(alphas, 5.0, "epsilon") * snr, sample)
    torch.testing.assert_close(min_snr_weights(alphas, 5.0, "v_prediction") * (snr + 1), sample)


def test_timesteps_stay_in_range_and_prefer_intermediate_noise_levels() -> None:
    timesteps = sample_timesteps(4000, 1000, torch.Generator().manual_seed(0))
    assert timesteps.min() >= 0
    assert timesteps.max() == 999
    assert ((timesteps > 333) & (timesteps < 667)).sum() > 0.4 * len(timesteps)
