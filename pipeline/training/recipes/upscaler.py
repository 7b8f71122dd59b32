"""The upscaler recipe: x4 super-resolution by a U-Net that is conditioned on the low-resolution image.

It has the form of Stable Diffusion's x4 upscaler: three additional input channels, at the size of the latents, hold
the low-resolution image with noise of a level that the U-Net gets as a class label (Rombach et al. 2022, section 4.4;
Ho et al. 2021, section 4).
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.models.autoencoder import AutoencoderKL
from pipeline.models.checkpoint.components import load_autoencoder, load_text_encoder
from pipeline.models.checkpoint.weights import channels_last
from pipeline.models.unet import UNet
from pipeline.models.unet_config import UNetConfig
from pipeline.training.data.examples import TEXTURES, Example, Source, stack_pixels
from pipeline.training.data.textures import degrade
from pipeline.training.denoising import add_noise, denoising_errors, sample_timesteps
from pipeline.training.latents import random_crops, scale_latents
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, step_generator, train
from pipeline.training.recipes.diffusion import SHAPES_DIFFUSION
from pipeline.training.save import save_component, write_json, write_model_index

SCALE: Final = 4
SCALING_FACTOR: Final = 0.08333
"""The scaling factor of the latents. diffusers' upscaling pipeline uses this value, not that of the checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscalerRecipe:
    """The configuration of the upscaler recipe."""

    unet: UNetConfig
    source: Source = TEXTURES
    width: int
    """The side of the square high-resolution training images in pixels."""
    crop: int
    """The side of the random crop of the latents in training, since most edges of tiles are not edges of the image."""
    batch: int
    max_noise_level: int
    scheduler: dict[str, Any]
    low_res_scheduler: dict[str, Any]
    """The noise schedule of the low-resolution image, used up to step `max_noise_level`."""
    generation_config: dict[str, Any]
    """The contents of generation_config.json: the settings that suit the model."""
    seed: int
    loop: LoopConfig


UPSCALER: Final = UpscalerRecipe(
    unet=UNetConfig(
        sample_size=64,
        in_channels=7,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=128,
        norm_num_groups=16,
        num_class_embeds=101,
    ),
    width=128,
    crop=24,
    batch=12,
    max_noise_level=100,
    scheduler=SHAPES_DIFFUSION.scheduler,
    low_res_scheduler={
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "clip_sample": False,
    },
    generation_config={"num_inference_steps": 4, "guidance_scale": 1.0, "noise_level": 0, "correct_colors": True},
    seed=5,
    loop=LoopConfig(steps=5600, learning_rate=2e-3, warmup_steps=50, cooldown=0.4, average_decay=0.99),
)


@dataclass(frozen=True, slots=True)
class UpscalingBatch:
    """Crops (B, C, h, w) of latents, noise and noisy low-resolution images; noise levels and timesteps (B,)."""

    latents: Tensor
    noise: Tensor
    low_res: Tensor
    noise_levels: Tensor
    timesteps: Tensor


def train_upscaler(recipe: UpscalerRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Train with the autoencoder and the text encoder of `output`, and complete `output` to a checkpoint folder.

    The autoencoder is rescaled to SCALING_FACTOR. The text encoder is not trained; it gets an empty prompt. State and
    log are in `output/upscaling`.
    """
    torch.manual_seed(recipe.seed)
    if worker.rank == 0:
        _rescale_autoencoder(output / "vae")
    worker.barrier()
    autoencoder = channels_last(load_autoencoder(output / "vae").to(worker.device))
    text = load_text_encoder(output / "text_encoder", output / "tokenizer")
    empty_prompt = text.encode([""])[0].clone().to(worker.device)
    unet = channels_last(UNet(recipe.unet))
    alphas = NoiseScheduleConfig.from_dict(recipe.scheduler).alphas_cumprod().float().to(worker.device)
    low_res_alphas = NoiseScheduleConfig.from_dict(recipe.low_res_scheduler).alphas_cumprod().float()
    prediction_type = recipe.scheduler["prediction_type"]

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = _sample_batch(recipe, step, autoencoder, low_res_alphas, len(alphas), worker)

        def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
            inputs = torch.cat([noisy, batch.low_res], dim=1).to(memory_format=torch.channels_last)
            return unet(inputs, timesteps, empty_prompt.expand(len(inputs), -1, -1), class_labels=batch.noise_levels)

        errors = denoising_errors(network, batch.latents, batch.noise, batch.timesteps, alphas, prediction_type)
        return errors.mean(), {}

    average = train(unet, step_loss, recipe.loop, output / "upscaling", worker, batch=recipe.batch).cpu()
    if worker.rank == 0:
        _save(average, recipe, output)


def _rescale_autoencoder(folder: Path) -> None:
    """Rewrite the autoencoder in `folder` so that its scaling factor is SCALING_FACTOR."""
    autoencoder = load_autoencoder(folder)
    factor = autoencoder.config.scaling_factor
    if factor != SCALING_FACTOR:
        scale_latents(autoencoder, factor / SCALING_FACTOR)
        config = replace(autoencoder.config, scaling_factor=SCALING_FACTOR)
        save_component(autoencoder, config, "AutoencoderKL", folder, dtype=torch.float16)


def _sample_batch(
    recipe: UpscalerRecipe,
    step: int,
    autoencoder: AutoencoderKL,
    low_res_alphas: Tensor,
    num_timesteps: int,
    worker: Worker,
) -> UpscalingBatch:
    """Return the worker's rows of a step's batch, cropped."""
    generator = step_generator(recipe.seed, step)
    examples = recipe.source.examples(recipe.seed, step * recipe.batch, recipe.batch, recipe.width)
    low_res = _low_res_pixels(examples, f"{recipe.seed}/{step}")
    side = recipe.width // SCALE
    posterior_noise = torch.randn(recipe.batch, autoencoder.config.latent_channels, side, side, generator=generator)
    with torch.no_grad():
        latents = autoencoder.encode(worker.local_rows(stack_pixels(examples)), worker.local_rows(posterior_noise))
    levels = torch.randint(recipe.max_noise_level + 1, (recipe.batch,), generator=generator)
    low_res = add_noise(low_res, torch.randn(low_res.shape, generator=generator), low_res_alphas[levels])
    timesteps = sample_timesteps(recipe.batch, num_timesteps, generator)
    noise = torch.randn(posterior_noise.shape, generator=generator)
    low_res, levels, timesteps, noise = (worker.local_rows(tensor) for tensor in (low_res, levels, timesteps, noise))
    latents, low_res, noise = random_crops(recipe.crop, f"{recipe.seed}/{step}", latents, low_res, noise)
    return UpscalingBatch(latents, noise, low_res, levels, timesteps)


def _low_res_pixels(examples: list[Example], seed: str) -> Tensor:
    random = Random(seed)
    return stack_pixels([degrade(image, SCALE, random) for image, _ in examples])


def _save(unet: nn.Module, recipe: UpscalerRecipe, output: Path) -> None:
    """Write the U-Net and the configs that make `output` a checkpoint folder."""
    shutil.rmtree(output / "unet", ignore_errors=True)
    save_component(unet, recipe.unet, "UNet2DConditionModel", output / "unet", dtype=torch.float16)
    write_json(output / "scheduler" / "scheduler_config.json", recipe.scheduler)
    write_json(output / "low_res_scheduler" / "scheduler_config.json", recipe.low_res_scheduler)
    write_json(output / "generation_config.json", recipe.generation_config)
    index = {
        "_class_name": "StableDiffusionUpscalePipeline",
        "low_res_scheduler": ["diffusers", recipe.low_res_scheduler["_class_name"]],
        "max_noise_level": recipe.max_noise_level,
        "scheduler": ["diffusers", recipe.scheduler["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_model_index(output, index)
