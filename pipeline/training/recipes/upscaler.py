"""The recipe of super-resolution by four: a U-Net that is shown the small picture beside the latents of the large one.

The form is Stable Diffusion's x4 upscaler: the small picture, noised to a level that the U-Net is told, stands in
three further input channels at the latents' own size (Rombach et al. 2022, section 4.4; Ho et al. 2021, section 4).
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.models.checkpoint.components import load_autoencoder, load_text_encoder
from pipeline.models.checkpoint.weights import channels_last
from pipeline.models.unet import UNet, UNetConfig
from pipeline.training.data.examples import TEXTURES, Source, pixels_of
from pipeline.training.data.textures import degraded
from pipeline.training.loop import SINGLE_WORKER, LoopConfig, Worker, draws_of, train
from pipeline.training.losses import denoising_errors, noised
from pipeline.training.recipes.autoencoder import scale_latents, windows
from pipeline.training.recipes.diffusion import SHAPES_DIFFUSION, drawn_timesteps
from pipeline.training.save import save_component, write_json, write_model_index

SCALE: Final = 4
SCALING_FACTOR: Final = 0.08333
"""Of the latents: the one that the field's pipeline of upscaling takes, whatever a checkpoint says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpscalerRecipe:
    """What to train, on what, and how."""

    unet: UNetConfig
    source: Source = TEXTURES
    width: int
    """Pixels of a training picture's side, large."""
    window: int
    """The side of the part of its latents that is learned from: a tile's edge is seldom a picture's."""
    batch: int
    max_noise_level: int
    scheduler: dict[str, Any]
    low_res_scheduler: dict[str, Any]
    """By which the small picture is noised, up to `max_noise_level` of its steps."""
    advice: dict[str, Any]
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
    window=24,
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
    advice={"num_inference_steps": 4, "guidance_scale": 1.0, "noise_level": 0, "correct_colors": True},
    seed=5,
    loop=LoopConfig(steps=5600, learning_rate=2e-3, warmup_steps=50, cooldown=0.4, average_decay=0.99),
)


def train_upscaler(recipe: UpscalerRecipe, output: Path, worker: Worker = SINGLE_WORKER) -> None:
    """Train on textures, with the autoencoder and the text encoder of `output`; complete it to a checkpoint.

    The autoencoder's latents are brought to SCALING_FACTOR; the text encoder stays as it is and is told nothing.
    State and log stand in `output/upscaling`.
    """
    torch.manual_seed(recipe.seed)
    autoencoder = load_autoencoder(output / "vae")
    factor = autoencoder.config.scaling_factor
    if factor != SCALING_FACTOR and worker.rank == 0:
        scale_latents(autoencoder, factor / SCALING_FACTOR)
        config = replace(autoencoder.config, scaling_factor=SCALING_FACTOR)
        save_component(autoencoder, config, "AutoencoderKL", output / "vae", dtype=torch.float16)
    worker.wait()
    autoencoder = channels_last(load_autoencoder(output / "vae").to(worker.device))
    text = load_text_encoder(output / "text_encoder", output / "tokenizer")
    nothing = text.encode([""])[0].clone().to(worker.device)
    unet = channels_last(UNet(recipe.unet))
    alphas = NoiseScheduleConfig.from_dict(recipe.scheduler).alphas_cumprod().float().to(worker.device)
    low_res_alphas = NoiseScheduleConfig.from_dict(recipe.low_res_scheduler).alphas_cumprod().float()
    side, channels = recipe.width // SCALE, autoencoder.config.latent_channels

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draws, random = draws_of(recipe.seed, step), Random(f"{recipe.seed}/{step}")
        examples = recipe.source.examples(recipe.seed, step * recipe.batch, recipe.batch, recipe.width)
        small = pixels_of([degraded(picture, SCALE, random) for picture, _ in examples])
        first = torch.randn(recipe.batch, channels, side, side, generator=draws)
        with torch.no_grad():
            latents = autoencoder.encode(worker.part(pixels_of(examples)), worker.part(first))
        levels = torch.randint(recipe.max_noise_level + 1, (recipe.batch,), generator=draws)
        shown = noised(small, torch.randn(small.shape, generator=draws), low_res_alphas[levels])
        timesteps = drawn_timesteps(recipe.batch, len(alphas), draws)
        noise = torch.randn(first.shape, generator=draws)
        shown, levels, timesteps, noise = (worker.part(part) for part in (shown, levels, timesteps, noise))
        latents, shown, noise = windows(recipe.window, f"{recipe.seed}/{step}", latents, shown, noise)

        def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
            seen = torch.cat([noisy, shown], dim=1).to(memory_format=torch.channels_last)
            return unet(seen, timesteps, nothing.expand(len(seen), -1, -1), levels)

        kind = recipe.scheduler["prediction_type"]
        return denoising_errors(network, latents, noise, timesteps, alphas, kind).mean(), {}

    average = train(unet, step_loss, recipe.loop, output / "upscaling", worker).cpu()
    if worker.rank:
        return
    _save(average, recipe, output)


def _save(unet: nn.Module, recipe: UpscalerRecipe, output: Path) -> None:
    shutil.rmtree(output / "unet", ignore_errors=True)
    save_component(unet, recipe.unet, "UNet2DConditionModel", output / "unet", dtype=torch.float16)
    write_json(output / "scheduler" / "scheduler_config.json", recipe.scheduler)
    write_json(output / "low_res_scheduler" / "scheduler_config.json", recipe.low_res_scheduler)
    write_json(output / "generation_config.json", recipe.advice)
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
