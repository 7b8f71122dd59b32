"""The inpainting recipe: turns a text-to-image checkpoint into one that repaints masked areas.

As in Stable Diffusion, the U-Net gets the mask and the latents of the masked image as additional input channels,
whose weights start at zero (Rombach et al. 2022, section 4.5 and appendix E.2.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.models.autoencoder import AutoencoderKL
from pipeline.models.checkpoint.components import load_autoencoder, load_text_encoder, load_unet
from pipeline.models.checkpoint.weights import channels_last, read_json
from pipeline.models.unet import UNet
from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes, stack_pixels
from pipeline.training.data.inpainting import InpaintingExample, inpainting_example
from pipeline.training.denoising import Denoiser, denoising_errors, sample_timesteps
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, step_generator, train
from pipeline.training.save import save_component, write_model_index


@dataclass(frozen=True, kw_only=True, slots=True)
class InpaintingRecipe:
    """The configuration of the inpainting recipe."""

    batch: int
    removal: float = 0.4
    """The probability that a masked thing is removed from the scene; the caption is empty then."""
    caption_dropout: float = 0.1
    """The probability of an empty caption for a mask of brush strokes or rectangles."""
    seed: int
    loop: LoopConfig


SHAPES_INPAINTING: Final = InpaintingRecipe(
    batch=32,
    seed=3,
    loop=LoopConfig(steps=2_000, learning_rate=1e-3, warmup_steps=50, cooldown=0.5, average_decay=0.99),
)


def train_inpainting(recipe: InpaintingRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Turn the text-to-image checkpoint `output` into an inpainting checkpoint; only the U-Net and the index change.

    State and log are in `output/inpainting`.
    """
    torch.manual_seed(recipe.seed)
    autoencoder = channels_last(load_autoencoder(output / "vae").to(worker.device))
    text = load_text_encoder(output / "text_encoder", output / "tokenizer")
    unet = channels_last(with_mask_channels(load_unet(output / "unet"), autoencoder.config.latent_channels))
    denoiser = Denoiser(unet, text.model)
    scheduler = read_json(output / "scheduler" / "scheduler_config.json")
    alphas = NoiseScheduleConfig.from_dict(scheduler).alphas_cumprod().float().to(worker.device)
    prediction_type = str(scheduler["prediction_type"])
    width = unet.config.latent_size[1] * autoencoder.config.downsample_factor

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator, examples = step_generator(recipe.seed, step), _examples(recipe, step, width)
        latents, mask_latents = encode_examples(examples, width, autoencoder, generator)
        tokens = torch.tensor([text.token_ids(example.caption)[0] for example in examples])
        timesteps = sample_timesteps(recipe.batch, len(alphas), generator)
        noise = torch.randn(latents.shape, generator=generator)
        latents, mask_latents, tokens, timesteps, noise = (
            worker.local_rows(tensor) for tensor in (latents, mask_latents, tokens, timesteps, noise)
        )

        def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
            inputs = torch.cat([noisy, mask_latents], dim=1)
            return denoiser(inputs.to(memory_format=torch.channels_last), timesteps, tokens)

        errors = denoising_errors(network, latents, noise, timesteps, alphas, prediction_type)
        mask = mask_latents[:, :1]
        return errors.mean(), {"loss_in_mask": ((errors.mean(1, keepdim=True) * mask).sum() / mask.sum()).item()}

    average = train(denoiser, step_loss, recipe.loop, output / "inpainting", worker, batch=recipe.batch).cpu()
    assert isinstance(average, Denoiser)
    if worker.rank == 0:
        _save(average.unet, output)


def _examples(recipe: InpaintingRecipe, step: int, width: int) -> list[InpaintingExample]:
    """Return the examples of one step's batch."""
    random = Random(f"{recipe.seed}/{step}")
    return [
        inpainting_example(scene, random, width, removal=recipe.removal, caption_dropout=recipe.caption_dropout)
        for scene in scenes(recipe.seed, step * recipe.batch, recipe.batch)
    ]


@torch.no_grad()
def encode_examples(
    examples: Sequence[InpaintingExample], width: int, autoencoder: AutoencoderKL, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the latents (B, C, h, w) of the target images, and the U-Net's additional input (B, 1 + C, h, w).

    The additional input is the mask and the latents of the masked images.
    """
    pixels = stack_pixels([draw(example.scene, width) for example in examples])
    masks = torch.from_numpy(np.stack([np.asarray(example.mask) for example in examples]))[:, None].float() / 255
    both = torch.cat([pixels, pixels * (masks < 0.5)]).to(memory_format=torch.channels_last)
    side = width // autoencoder.config.downsample_factor
    noise = torch.randn(len(both), autoencoder.config.latent_channels, side, side, generator=generator)
    device = autoencoder.encoder.conv_in.weight.device
    latents, masked = autoencoder.encode(both.to(device), noise.to(device)).cpu().chunk(2)
    return latents, torch.cat([F.interpolate(masks, latents.shape[2:]), masked], dim=1)


def with_mask_channels(unet: UNet, latent_channels: int) -> UNet:
    """Return the U-Net with additional input channels, whose weights are zero, for the mask and the masked latents.

    A U-Net that has more input channels than `latent_channels` already is returned as it is.
    """
    if unet.config.in_channels != latent_channels:
        return unet.requires_grad_(True)
    extended = UNet(replace(unet.config, in_channels=2 * latent_channels + 1))
    weights = unet.state_dict()
    conv_in = torch.zeros_like(extended.conv_in.weight)
    conv_in[:, :latent_channels] = weights["conv_in.weight"]
    extended.load_state_dict(weights | {"conv_in.weight": conv_in})
    return extended


def _save(unet: UNet, output: Path) -> None:
    save_component(unet, unet.config, "UNet2DConditionModel", output / "unet", dtype=torch.float16)
    index = read_json(output / "model_index.json") | {"_class_name": "StableDiffusionInpaintPipeline"}
    write_model_index(output, index)
