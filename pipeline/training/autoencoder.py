"""The recipe of the autoencoder: reconstruction in L1 and L2, and a slight pull of its latents to the normal."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL
from pipeline.models.weights import channels_last
from pipeline.training.loop import LoopConfig, train
from pipeline.training.pictures import pixels_of, scenes
from pipeline.training.save import save_component


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRecipe:
    """What to train, on what, and how."""

    model: AutoencoderConfig
    width: int
    """Pixels of a training picture's side."""
    batch: int
    kl_weight: float
    """Of the KL divergence a colour value, beside the reconstruction's error a colour value."""
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
    loop=LoopConfig(steps=2400, learning_rate=2e-3, warmup_steps=100, average_decay=0.995, cooldown=0.4),
)


def reconstruction_loss(model: AutoencoderKL, pixels: Tensor, noise: Tensor, kl_weight: float) -> tuple[Tensor, dict]:
    """Mean L1 and L2 error and weighted KL of pixels (B, 3, H, W), as Rombach et al. 2022, appendix G."""
    posterior = model.posterior(pixels)
    rebuilt = model.decode_unscaled(posterior.sample(noise))
    error = rebuilt - pixels
    kl = posterior.kl().sum() / pixels.numel()
    squared = error.square().mean()
    loss = error.abs().mean() + squared + kl_weight * kl
    psnr = 10 * torch.log10(4 / squared.detach())
    return loss, {"psnr": psnr.item(), "kl": kl.item()}


def train_autoencoder(recipe: AutoencoderRecipe, output: Path) -> None:
    """Train, measure the latents' scale, and save `output/vae`; state and log stand in `output/autoencoder`."""
    torch.manual_seed(recipe.seed)
    model = channels_last(AutoencoderKL(recipe.model))
    side = recipe.width // recipe.model.downsample_factor

    def step_loss(step: int) -> tuple[Tensor, dict]:
        pixels = pixels_of(scenes(recipe.seed, step * recipe.batch, recipe.batch), recipe.width)
        draws = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        noise = torch.randn(recipe.batch, recipe.model.latent_channels, side, side, generator=draws)
        pixels = pixels.to(memory_format=torch.channels_last)
        return reconstruction_loss(model, pixels, noise, recipe.kl_weight)

    average = train(model, step_loss, recipe.loop, output / "autoencoder")
    assert isinstance(average, AutoencoderKL)
    with torch.inference_mode():
        latents = average.posterior(pixels_of(scenes(recipe.seed + 1, 0, 256), recipe.width)).mean
    config = replace(recipe.model, scaling_factor=round(1 / latents.std().item(), 5))
    save_component(average, config, "AutoencoderKL", output / "vae", dtype=torch.float16)
