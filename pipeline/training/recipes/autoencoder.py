"""The autoencoder recipes, with KL or VQ regularization (Rombach et al. 2022, section 3.1 and appendix G).

The loss is L1 plus L2 reconstruction and the regularization. A recipe can add a perceptual distance in the features
of a CLIP image encoder and, from a given step on, a patch discriminator.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL, VQConfig, VQModel
from pipeline.models.checkpoint.components import load_autoencoder
from pipeline.models.checkpoint.weights import channels_last
from pipeline.training.data.examples import SCENES, TEXTURES, Source, stack_pixels
from pipeline.training.discriminator import PatchDiscriminator
from pipeline.training.image_features import ImageFeatures, load_image_features
from pipeline.training.latents import random_crops
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, step_generator, train
from pipeline.training.losses import adaptive_weight, commitment_loss, discriminator_loss, perceptual_distance
from pipeline.training.save import save_component


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRecipe:
    """The configuration of an autoencoder recipe."""

    model: AutoencoderConfig | VQConfig
    source: Source = SCENES
    width: int
    """The side of the square training images in pixels."""
    batch: int
    kl_weight: float
    """The weight of the KL divergence per color value; the reconstruction error per color value has weight 1."""
    crop: int | None = None
    """If set, only a random crop of the latents with this side is decoded. The decoder then cannot rely on the position
    in the image, so tiles are decoded like the whole image."""
    commitment: float = 0.25
    """The weight of the commitment loss (VQ only)."""
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    """The first step at which the discriminator is trained and used."""
    decoder_only: bool = False
    """Train only the decoder of the existing `output/vae`. The latents stay the same, so denoisers trained on them
    still fit."""
    seed: int
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=1000, learning_rate=1e-3))


SHAPES_AUTOENCODER: Final = AutoencoderRecipe(
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
SHAPES_AUTOENCODER_ADVERSARIAL: Final = replace(
    SHAPES_AUTOENCODER, perceptual_weight=0.3, adversarial_weight=0.1, adversarial_start=1200
)
"""The paper's full loss from the start. It needs the CLIP of shapes-clip."""
SHAPES_DECODER: Final = replace(
    SHAPES_AUTOENCODER,
    perceptual_weight=0.3,
    adversarial_weight=0.1,
    adversarial_start=300,
    decoder_only=True,
    seed=6,
    loop=LoopConfig(steps=1500, learning_rate=5e-4, warmup_steps=50, average_decay=0.995, cooldown=0.6),
)
"""The paper's full loss for the decoder only, after SHAPES_AUTOENCODER has trained the latents."""
TEXTURES_AUTOENCODER: Final = replace(SHAPES_AUTOENCODER, source=TEXTURES, crop=11, seed=4)
SHAPES_VQ: Final = replace(
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
    """The autoencoder and, in adversarial recipes, the patch discriminator that it is trained against."""

    def __init__(self, autoencoder: AutoencoderKL | VQModel, discriminator: PatchDiscriminator | None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = discriminator


def autoencoder_loss(
    networks: AutoencoderNetworks,
    pixels: Tensor,
    noise: Tensor,
    recipe: AutoencoderRecipe,
    features: ImageFeatures | None,
    step: int,
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss for pixels (B, 3, H, W) in [-1, 1] at a step, and its metrics.

    `noise` has the shape of the latents. One backward pass trains the autoencoder and the discriminator: the loss of
    each has no gradient for the weights of the other.
    """
    autoencoder = networks.autoencoder
    if isinstance(autoencoder, VQModel):
        decode = autoencoder.decode_codes
        latents, regularization, metrics = _quantized_latents(autoencoder, pixels, recipe)
    else:
        decode = autoencoder.decode_unscaled
        latents, regularization, metrics = _sampled_latents(autoencoder, pixels, noise, recipe)
    if recipe.crop is not None:
        latents, pixels = random_crops(recipe.crop, f"{recipe.seed}/{step}", latents, pixels)
    decoded = decode(latents)
    error = decoded - pixels
    squared = error.square().mean()
    reconstruction = error.abs().mean() + squared
    metrics["psnr"] = (10 * torch.log10(4 / squared.detach())).item()
    if features is not None:
        distance = perceptual_distance(features(decoded), features(pixels)).mean()
        reconstruction = reconstruction + recipe.perceptual_weight * distance
        metrics["perceptual"] = distance.item()
    loss = reconstruction + regularization
    if networks.discriminator is not None and step >= recipe.adversarial_start:
        adversarial = -networks.discriminator.frozen_logits(decoded).mean()
        weight = adaptive_weight(reconstruction, adversarial, autoencoder.decoder.conv_out.weight)
        hinge = discriminator_loss(networks.discriminator(pixels), networks.discriminator(decoded.detach()))
        loss = loss + recipe.adversarial_weight * weight * adversarial + hinge
        metrics |= {"discriminator": hinge.item(), "adversarial_weight": weight.item()}
    return loss, metrics


def _sampled_latents(
    autoencoder: AutoencoderKL, pixels: Tensor, noise: Tensor, recipe: AutoencoderRecipe
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return latents sampled from the posterior, the weighted KL divergence, and metrics."""
    posterior = autoencoder.posterior(pixels)
    kl = posterior.kl().sum() / pixels.numel()
    return posterior.sample(noise), recipe.kl_weight * kl, {"kl": kl.item()}


def _quantized_latents(
    autoencoder: VQModel, pixels: Tensor, recipe: AutoencoderRecipe
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return quantized latents with a straight-through gradient (van den Oord et al. 2017), their loss, and metrics.

    The metric `codes_used` is the perplexity of the codes in the batch.
    """
    latents = autoencoder.encode(pixels)
    indices = autoencoder.quantize.nearest(latents)
    codes = autoencoder.quantize.vectors(indices)
    fractions = torch.bincount(indices.flatten()) / indices.numel()
    perplexity = torch.exp(-(fractions * fractions.clamp_min(1e-12).log()).sum()).item()
    straight_through = latents + (codes - latents).detach()
    return straight_through, commitment_loss(latents, codes, recipe.commitment), {"codes_used": perplexity}


def train_autoencoder(recipe: AutoencoderRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Train an autoencoder and save it as `output/vae`, or as `output/vqvae` if it has a codebook.

    State and log are in `output/autoencoder`, or in `output/decoder` if only the decoder is trained.
    """
    torch.manual_seed(recipe.seed)
    discriminator = PatchDiscriminator() if recipe.adversarial_weight else None
    networks = channels_last(AutoencoderNetworks(_build_autoencoder(recipe, output), discriminator))
    features = load_image_features(output / "clip", worker.device) if recipe.perceptual_weight else None
    side = recipe.width // recipe.model.downsample_factor

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels = stack_pixels(recipe.source.examples(recipe.seed, step * recipe.batch, recipe.batch, recipe.width))
        generator = step_generator(recipe.seed, step)
        noise = torch.randn(recipe.batch, recipe.model.latent_channels, side, side, generator=generator)
        pixels, noise = worker.local_rows(pixels), worker.local_rows(noise)
        return autoencoder_loss(networks, pixels, noise, recipe, features, step)

    folder = output / ("decoder" if recipe.decoder_only else "autoencoder")
    average = train(networks, step_loss, recipe.loop, folder, worker, batch=recipe.batch).cpu()
    assert isinstance(average, AutoencoderNetworks)
    if worker.rank == 0:
        _save(average.autoencoder, recipe, output)


def _build_autoencoder(recipe: AutoencoderRecipe, output: Path) -> AutoencoderKL | VQModel:
    """Return a new autoencoder, or that of `output/vae` with everything but its decoder frozen."""
    if recipe.decoder_only:
        autoencoder = load_autoencoder(output / "vae").requires_grad_(False)
        autoencoder.post_quant_conv.requires_grad_(True)
        autoencoder.decoder.requires_grad_(True)
        return autoencoder
    return VQModel(recipe.model) if isinstance(recipe.model, VQConfig) else AutoencoderKL(recipe.model)


def _save(autoencoder: AutoencoderKL | VQModel, recipe: AutoencoderRecipe, output: Path) -> None:
    """Write the autoencoder; the scaling factor of new KL latents is measured on 256 images."""
    if isinstance(autoencoder, VQModel):
        save_component(autoencoder, autoencoder.config, "VQModel", output / "vqvae", dtype=torch.float16)
        return
    config = autoencoder.config
    if not recipe.decoder_only:
        with torch.inference_mode():
            pixels = stack_pixels(recipe.source.examples(recipe.seed + 1, 0, 256, recipe.width))
            latents = autoencoder.posterior(pixels).mean
        config = replace(config, scaling_factor=round(1 / latents.std().item(), 5))
    save_component(autoencoder, config, "AutoencoderKL", output / "vae", dtype=torch.float16)
