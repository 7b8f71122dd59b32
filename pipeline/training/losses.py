"""The losses of the CLIP and autoencoder recipes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, scale: Tensor) -> Tensor:
    """Return the symmetric cross-entropy over a batch of pairs (Radford et al. 2021, figure 3).

    The embeddings (B, D) are normalized first; `scale` multiplies the logits.
    """
    logits = scale * F.normalize(image_embeds, dim=-1) @ F.normalize(text_embeds, dim=-1).T
    pairs = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs))


def perceptual_distance(features: Sequence[Tensor], other_features: Sequence[Tensor]) -> Tensor:
    """Return the mean squared difference (B,) of normalized features (Zhang et al. 2018, equation 1).

    Each sequence holds one tensor (B, T, D) per layer.
    """
    layers = [
        (F.normalize(one, dim=-1) - F.normalize(other, dim=-1)).square().sum(-1).mean(-1)
        for one, other in zip(features, other_features, strict=True)
    ]
    return torch.stack(layers).mean(0)


def discriminator_loss(real_logits: Tensor, generated_logits: Tensor) -> Tensor:
    """Return the hinge loss of a discriminator (Lim and Ye 2017, equation 10)."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + generated_logits).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return the weight of the adversarial loss that balances it with the reconstruction loss.

    It is the ratio of the norms of both gradients at the decoder's last layer (Esser et al. 2021, equation 7).
    """
    (reconstruction_grad,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (adversarial_grad,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (reconstruction_grad.norm() / (adversarial_grad.norm() + 1e-4)).clamp(0, 1e4).detach()


def commitment_loss(latents: Tensor, codes: Tensor, beta: float) -> Tensor:
    """Return the codebook loss plus `beta` times the commitment loss (van den Oord et al. 2017, section 3.2).

    The first term moves the selected codes toward the latents, the second moves the latents toward the codes.
    """
    return F.mse_loss(codes, latents.detach()) + beta * F.mse_loss(latents, codes.detach())
