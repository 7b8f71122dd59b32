"""Random crops of latents, and rescaling of an autoencoder's latents."""

import math
from random import Random

import torch
from torch import Tensor, nn

from pipeline.models.autoencoder import AutoencoderKL


def random_crops(side: int, seed: str, latents: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Crop latents (B, C, h, w) to `side` x `side` at a random position, and the other tensors to the same area.

    The width of each other tensor must be a multiple of that of the latents.
    """
    random, width = Random(seed), latents.shape[-1]
    top, left = random.randint(0, width - side), random.randint(0, width - side)
    crops: list[Tensor] = []
    for value in (latents, *others):
        factor = value.shape[-1] // width
        rows, columns = (slice(factor * first, factor * (first + side)) for first in (top, left))
        crops.append(value[:, :, rows, columns].contiguous(memory_format=torch.channels_last))
    return tuple(crops)


@torch.no_grad()
def scale_latents(autoencoder: AutoencoderKL, ratio: float) -> None:
    """Multiply the unscaled latents of an autoencoder by `ratio`, in place; the decoded images stay the same."""
    encoder_conv, decoder_conv = autoencoder.quant_conv, autoencoder.post_quant_conv
    assert isinstance(encoder_conv, nn.Conv2d)
    assert isinstance(decoder_conv, nn.Conv2d)
    assert encoder_conv.bias is not None
    mean = slice(autoencoder.config.latent_channels)
    encoder_conv.weight[mean] *= ratio
    encoder_conv.bias[mean] *= ratio
    encoder_conv.bias[autoencoder.config.latent_channels :] += 2 * math.log(ratio)  # the log variance
    decoder_conv.weight /= ratio
