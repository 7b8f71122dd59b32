"""The recipe of an autoencoder, KL- or VQ-regularised (Rombach et al. 2022, section 3.1 and appendix G).

Reconstruction in L1 and L2, a perceptual distance in the features of a CLIP's image tower, and, from a set step on,
a patch discriminator. What a recipe does not weigh is left out.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn

from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL, VQConfig, VQModel
from pipeline.models.checkpoint.components import load_autoencoder
from pipeline.models.checkpoint.weights import channels_last
from pipeline.training.data.examples import SCENES, TEXTURES, Source, pixels_of
from pipeline.training.discriminator import PatchDiscriminator
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, draws_of, train
from pipeline.training.losses import adaptive_weight, commitment_loss, discriminator_loss, perceptual_distance
from pipeline.training.recipes.clip import ImageFeatures, load_image_features
from pipeline.training.save import save_component


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRecipe:
    """What to train, on what, and how."""

    model: AutoencoderConfig | VQConfig
    source: Source = SCENES
    width: int
    """Pixels of a training picture's side."""
    batch: int
    kl_weight: float
    """Of the KL divergence a color value, beside the reconstruction's error a color value."""
    window: int | None = None
    """The side of the part of the latents that is decoded, anywhere in them: so that no part can stand in for others,
    and tiles of a picture decode as the whole does."""
    commitment: float = 0.25
    """How much the encoder is held to the codes that it chose, where there is a codebook."""
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    """The step at which the discriminator begins to learn and to count."""
    decoder_only: bool = False
    """Train the decoder of `output/vae` further and hold its encoder still, so that what knows its latents fits on."""
    seed: int
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, learning_rate=1e-3))


SHAPES_AUTOENCODER = AutoencoderRecipe(
    model=AutoencoderConfig(
        sample_size=64,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        layers_per_block=1,
        force_upcast=False,
    ),
    width=64,
    batch=12,
    kl_weight=2e-3,
    seed=1,
    loop=LoopConfig(steps=3000, learning_rate=2e-3, warmup_steps=50, average_decay=0.995, cooldown=0.4),
)
SHAPES_AUTOENCODER_ADVERSARIAL = replace(
    SHAPES_AUTOENCODER, perceptual_weight=0.3, adversarial_weight=0.1, adversarial_start=1200
)
"""The paper's whole loss; it needs the CLIP that shapes-clip makes."""
SHAPES_DECODER = replace(
    SHAPES_AUTOENCODER,
    perceptual_weight=0.3,
    adversarial_weight=0.1,
    adversarial_start=300,
    decoder_only=True,
    seed=6,
    loop=LoopConfig(steps=1500, learning_rate=5e-4, warmup_steps=50, average_decay=0.995, cooldown=0.6),
)
"""The paper's loss for the decoder alone, once reconstruction has shaped the latents."""
TEXTURES_AUTOENCODER = replace(SHAPES_AUTOENCODER, source=TEXTURES, window=11, seed=4)
SHAPES_VQ = replace(
    SHAPES_AUTOENCODER,
    model=VQConfig(
        sample_size=64,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=1024,
    ),
)


class AutoencoderNetworks(nn.Module):
    """The autoencoder and the discriminator that it is trained against, as one thing to train."""

    def __init__(self, autoencoder: AutoencoderKL | VQModel, discriminator: PatchDiscriminator | None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = discriminator


def autoencoder_loss(
    players: AutoencoderNetworks,
    pixels: Tensor,
    noise: Tensor,
    recipe: AutoencoderRecipe,
    features: ImageFeatures | None,
    step: int,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of pixels (B, 3, H, W) in [-1, 1] at a step, and its parts; `noise` has the latents' shape.

    Both players learn in one backward pass: each one's loss holds the other's weights still.
    """
    autoencoder = players.autoencoder
    if isinstance(autoencoder, VQModel):
        decode = autoencoder.decode_codes
        latents, regular, figures = _by_codebook(autoencoder, pixels, recipe)
    else:
        decode = autoencoder.decode_unscaled
        latents, regular, figures = _by_posterior(autoencoder, pixels, noise, recipe)
    if recipe.window is not None:
        latents, pixels = windows(recipe.window, f"{recipe.seed}/{step}", latents, pixels)
    rebuilt = decode(latents)
    error = rebuilt - pixels
    squared = error.square().mean()
    reconstruction = error.abs().mean() + squared
    figures["psnr"] = (10 * torch.log10(4 / squared.detach())).item()
    if features is not None:
        distance = perceptual_distance(features(rebuilt), features(pixels)).mean()
        reconstruction = reconstruction + recipe.perceptual_weight * distance
        figures["perceptual"] = distance.item()
    loss = reconstruction + regular
    if players.discriminator is not None and step >= recipe.adversarial_start:
        fooled = -players.discriminator.held(rebuilt).mean()
        weight = adaptive_weight(reconstruction, fooled, autoencoder.decoder.conv_out.weight)
        told = discriminator_loss(players.discriminator(pixels), players.discriminator(rebuilt.detach()))
        loss = loss + recipe.adversarial_weight * weight * fooled + told
        figures |= {"discriminator": told.item(), "adversarial_weight": weight.item()}
    return loss, figures


def _by_posterior(
    autoencoder: AutoencoderKL, pixels: Tensor, noise: Tensor, recipe: AutoencoderRecipe
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Latents to decode, the weighted KL divergence, and figures."""
    posterior = autoencoder.posterior(pixels)
    kl = posterior.kl().sum() / pixels.numel()
    return posterior.sample(noise), recipe.kl_weight * kl, {"kl": kl.item()}


def _by_codebook(
    autoencoder: VQModel, pixels: Tensor, recipe: AutoencoderRecipe
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Latents to decode, the commitment loss, and figures; the gradient passes the lookup straight (van den Oord 2017).

    `codes_used` is the perplexity of the batch's codes: as many as are used alike.
    """
    latents = autoencoder.encode(pixels)
    numbers = autoencoder.quantize.nearest(latents)
    codes = autoencoder.quantize.vectors(numbers)
    shares = torch.bincount(numbers.flatten()) / numbers.numel()
    used = torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()).item()
    straight = latents + (codes - latents).detach()
    return straight, commitment_loss(latents, codes, recipe.commitment), {"codes_used": used}


def windows(window: int, seed: str, latents: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The same part of everything, at a place that `seed` says: `window` a side of latents (B, C, h, w)."""
    random, side = Random(seed), latents.shape[-1]
    top, left = random.randint(0, side - window), random.randint(0, side - window)
    parts: list[Tensor] = []
    for value in (latents, *others):
        factor = value.shape[-1] // side
        rows, columns = (slice(factor * first, factor * (first + window)) for first in (top, left))
        parts.append(value[:, :, rows, columns].contiguous(memory_format=torch.channels_last))
    return tuple(parts)


def train_autoencoder(recipe: AutoencoderRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Train, and save `output/vae` with its latents' measured scale, or `output/vqvae`.

    State and log stand in `output/autoencoder`, or `output/decoder` where that alone is trained.
    """
    torch.manual_seed(recipe.seed)
    discriminator = PatchDiscriminator() if recipe.adversarial_weight else None
    autoencoder = _start(recipe, output)
    players = channels_last(AutoencoderNetworks(autoencoder, discriminator))
    features = load_image_features(output / "clip", worker.device) if recipe.perceptual_weight else None
    side = recipe.width // recipe.model.downsample_factor

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels = pixels_of(recipe.source.examples(recipe.seed, step * recipe.batch, recipe.batch, recipe.width))
        draws = draws_of(recipe.seed, step)
        noise = torch.randn(recipe.batch, recipe.model.latent_channels, side, side, generator=draws)
        return autoencoder_loss(players, worker.part(pixels), worker.part(noise), recipe, features, step)

    folder = output / ("decoder" if recipe.decoder_only else "autoencoder")
    average = train(players, step_loss, recipe.loop, folder, worker).autoencoder.cpu()
    if worker.rank:
        return
    if isinstance(average, VQModel):
        save_component(average, recipe.model, "VQModel", output / "vqvae", dtype=torch.float16)
        return
    assert isinstance(average, AutoencoderKL)
    config = average.config
    if not recipe.decoder_only:
        with torch.inference_mode():
            pixels = pixels_of(recipe.source.examples(recipe.seed + 1, 0, 256, recipe.width))
            latents = average.posterior(pixels).mean
        config = replace(config, scaling_factor=round(1 / latents.std().item(), 5))
    save_component(average, config, "AutoencoderKL", output / "vae", dtype=torch.float16)


def _start(recipe: AutoencoderRecipe, output: Path) -> AutoencoderKL | VQModel:
    """A new autoencoder, or that of `output/vae` with all but its decoder held still."""
    if recipe.decoder_only:
        autoencoder = load_autoencoder(output / "vae").requires_grad_(False)
        autoencoder.post_quant_conv.requires_grad_(True)
        autoencoder.decoder.requires_grad_(True)
        return autoencoder
    return VQModel(recipe.model) if isinstance(recipe.model, VQConfig) else AutoencoderKL(recipe.model)


@torch.no_grad()
def scale_latents(autoencoder: AutoencoderKL, ratio: float) -> None:
    """Make the unscaled latents `ratio` times as large, with the same pictures out."""
    encoded, decoded = autoencoder.quant_conv, autoencoder.post_quant_conv
    assert isinstance(encoded, nn.Conv2d)
    assert isinstance(decoded, nn.Conv2d)
    assert encoded.bias is not None
    mean = slice(autoencoder.config.latent_channels)
    encoded.weight[mean] *= ratio
    encoded.bias[mean] *= ratio
    encoded.bias[autoencoder.config.latent_channels :] += 2 * math.log(ratio)
    decoded.weight /= ratio
