"""The training objective of the denoising recipes: noisy latents, targets, timesteps and weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.models.unet import UNet


class Denoiser(nn.Module):
    """A U-Net and the text encoder that it is conditioned on, in one module so that both can be trained."""

    def __init__(self, unet: UNet, text: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.text = text

    def forward(self, latents: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Return the model output for noisy latents (B, C, h, w), timesteps (B,) and token ids (B, window)."""
        encoder_hidden_states = self.text(tokens).last_hidden_state
        return self.unet(latents, timesteps, encoder_hidden_states)


def add_noise(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Return latents (B, C, h, w) at the noise level of the cumulative `alphas` (B,) (Ho et al. 2020, equation 4)."""
    signal, deviation = _signal_and_noise_scales(alphas)
    return signal * latents + deviation * noise


def denoising_target(latents: Tensor, noise: Tensor, alphas: Tensor, prediction_type: str) -> Tensor:
    """Return the target of the network for the input `add_noise(latents, noise, alphas)`.

    It is the noise (Ho et al. 2020, equation 14), the velocity (Salimans and Ho 2022, appendix D) or the latents.
    `alphas` are cumulative, (B,). ValueError if the prediction type is unknown.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        signal, deviation = _signal_and_noise_scales(alphas)
        return signal * noise - deviation * latents
    raise ValueError(f"prediction_type is {prediction_type!r}; known: epsilon, sample, v_prediction")


def denoising_errors(
    network: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas: Tensor,
    prediction_type: str,
) -> Tensor:
    """Return the squared errors (B, C, h, w) of `network` on latents (B, C, h, w) with noise, at timesteps (B,).

    `alphas` are the cumulative alphas of all timesteps, (T,).
    """
    alphas = alphas[timesteps]
    model_output = network(add_noise(latents, noise, alphas), timesteps)
    return (model_output - denoising_target(latents, noise, alphas, prediction_type)).square()


def min_snr_weights(alphas: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Return loss weights (B,) that clamp the signal-to-noise ratio at `gamma` (Hang et al. 2023, section 3.4)."""
    snr = alphas / (1 - alphas).clamp_min(1e-12)
    clamped = snr.clamp_max(gamma)
    if prediction_type == "epsilon":
        return torch.where(snr > 0, clamped / snr.clamp_min(1e-12), torch.ones_like(snr))
    if prediction_type == "v_prediction":
        return clamped / (snr + 1)
    return clamped


def sample_timesteps(count: int, end: int, generator: torch.Generator) -> Tensor:
    """Sample timesteps in 0..end-1: half uniformly, half logit-normally (Esser et al. 2024, section 3.1).

    Intermediate noise levels determine the content of an image, so they are sampled more often. The uniform half covers
    both ends of the range, above all the last timestep, where inference starts.
    """
    uniform = torch.rand(count, generator=generator)
    logit_normal = torch.sigmoid(0.3 + torch.randn(count, generator=generator))
    fractions = torch.where(torch.rand(count, generator=generator) < 0.5, uniform, logit_normal)
    return (fractions * end).long().clamp(max=end - 1)


def per_image(values: Tensor) -> Tensor:
    """Return one value per image (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _signal_and_noise_scales(alphas: Tensor) -> tuple[Tensor, Tensor]:
    return per_image(alphas.sqrt()), per_image((1 - alphas).sqrt())
