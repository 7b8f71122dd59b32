"""What the recipes minimise; every loss is a function of tensors, and says where it comes from."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def denoising_target(latents: Tensor, noise: Tensor, alphas: Tensor, prediction_type: str) -> Tensor:
    """What the network should say of `noised(latents, noise, alphas)`; `alphas` are cumulated, (B,).

    The noise (Ho et al. 2020, equation 14), the velocity (Salimans and Ho 2022, appendix D) or the latents.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        signal, deviation = _weights(alphas)
        return signal * noise - deviation * latents
    raise ValueError(f"prediction_type is {prediction_type!r}; known: epsilon, sample, v_prediction")


def noised(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Latents (B, C, h, w) at the noise level of the cumulated `alphas` (B,) (Ho et al. 2020, equation 4)."""
    signal, deviation = _weights(alphas)
    return signal * latents + deviation * noise


def denoising_errors(
    network: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    alphas: Tensor,
    prediction_type: str,
) -> Tensor:
    """Squared errors (B, C, h, w) of what `network` says of noised latents (B, C, h, w) at timesteps (B,).

    `alphas` are those of all timesteps, cumulated, (T,).
    """
    chosen = alphas[timesteps]
    told = network(noised(latents, noise, chosen), timesteps)
    return (told - denoising_target(latents, noise, chosen, prediction_type)).square()


def min_snr_weights(alphas: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Weights (B,) that bound the signal-to-noise ratio's pull at `gamma` (Hang et al. 2023, section 3.4)."""
    snr = alphas / (1 - alphas).clamp_min(1e-12)
    bounded = snr.clamp_max(gamma)
    if prediction_type == "epsilon":
        return torch.where(snr > 0, bounded / snr.clamp_min(1e-12), torch.ones_like(snr))
    if prediction_type == "v_prediction":
        return bounded / (snr + 1)
    return bounded


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the batch's pairs (Radford et al. 2021, figure 3); embeddings (B, D), any length."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    pairs = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs))


def perceptual_distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of unit features (B, T, D) of all layers, (B,) (Zhang et al. 2018, equation 1)."""
    layers = [
        (F.normalize(one, dim=-1) - F.normalize(other, dim=-1)).square().sum(-1).mean(-1)
        for one, other in zip(ours, theirs, strict=True)
    ]
    return torch.stack(layers).mean(0)


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Hinge loss of a discriminator's logits on real and made patches (Lim and Ye 2017, equation 10)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """How much the adversarial loss may count: the ratio of both losses' gradients at the decoder's last layer.

    Esser et al. 2021, equation 7.
    """
    (pull,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (push,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (pull.norm() / (push.norm() + 1e-4)).clamp(0, 1e4).detach()


def commitment_loss(latents: Tensor, codes: Tensor, beta: float) -> Tensor:
    """Pulls the chosen codes to the latents, and by `beta` those to the codes (van den Oord et al. 2017, 3.2)."""
    return F.mse_loss(codes, latents.detach()) + beta * F.mse_loss(latents, codes.detach())


def _weights(alphas: Tensor) -> tuple[Tensor, Tensor]:
    return alphas.sqrt()[:, None, None, None], (1 - alphas).sqrt()[:, None, None, None]
