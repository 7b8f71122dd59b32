"""The upscaler recipe: it learns from textures, and its result opens in diffusers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline  # pyright: ignore[reportPrivateImportUsage]

from pipeline.models.checkpoint.components import load_autoencoder
from pipeline.training.data.examples import TEXTURES, stack_pixels
from pipeline.training.loop import LoopConfig
from pipeline.training.recipes.autoencoder import train_autoencoder
from pipeline.training.recipes.upscaler import SCALING_FACTOR, UPSCALER, train_upscaler
from tests.training.tiny_recipes import AUTOENCODER, DIFFUSION, WIDTH, copy_of, losses


def test_an_upscaler_learns_from_textures_and_opens_in_diffusers(checkpoint: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint, tmp_path, "text_encoder", "tokenizer")
    loop = LoopConfig(steps=24, learning_rate=3e-3, warmup_steps=5, log_every=8)
    train_autoencoder(replace(AUTOENCODER, source=TEXTURES, crop=6, batch=4, loop=loop), folder)
    unet = replace(
        UPSCALER.unet,
        block_out_channels=(16, 32, 32),
        cross_attention_dim=DIFFUSION.unet.cross_attention_dim,
        norm_num_groups=8,
    )
    train_upscaler(replace(UPSCALER, unet=unet, width=64, crop=8, batch=8, loop=loop), folder)
    values = losses(folder / "upscaling")
    assert values[-1] < 0.9 * values[0]
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert pipeline.unet.config.in_channels == 7
    assert pipeline.vae.config.scaling_factor == SCALING_FACTOR
    latents = load_autoencoder(folder / "vae").encode(stack_pixels(TEXTURES.examples(1, 0, 8, WIDTH)))
    assert latents.std().item() == pytest.approx(1.0, abs=0.3)
    assert pipeline.config.max_noise_level == UPSCALER.max_noise_level  # pyright: ignore[reportAttributeAccessIssue]
