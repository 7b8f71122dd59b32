"""The autoencoder recipes: reconstruction, codebook, discriminator, decoder only."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL
from pipeline.models.checkpoint.components import load_autoencoder, load_vq
from pipeline.training.data.examples import SCENES, stack_pixels
from pipeline.training.loop import LoopConfig
from pipeline.training.recipes.autoencoder import (
    SHAPES_AUTOENCODER_ADVERSARIAL,
    SHAPES_DECODER,
    SHAPES_VQ,
    AutoencoderNetworks,
    autoencoder_loss,
    train_autoencoder,
)
from tests.training.tiny_recipes import AUTOENCODER, WIDTH, copy_of, log_lines, losses

ADVERSARIAL_LOOP = LoopConfig(steps=24, learning_rate=2e-3, warmup_steps=2, log_every=4)


def test_the_autoencoder_learns_and_its_latents_have_unit_deviation(components: Path) -> None:
    values = losses(components / "autoencoder")
    assert values[-1] < 0.85 * values[0]
    autoencoder = load_autoencoder(components / "vae")
    latents = autoencoder.encode(stack_pixels(SCENES.examples(5, 0, 64, WIDTH)))
    assert latents.std().item() == pytest.approx(1.0, abs=0.15)


def test_a_codebook_is_learned_and_used(tmp_path: Path) -> None:
    recipe = replace(AUTOENCODER, model=replace(SHAPES_VQ.model, block_out_channels=(16, 32, 32)))
    train_autoencoder(recipe, tmp_path)
    lines = log_lines(tmp_path / "autoencoder")
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 0.5
    assert lines[-1]["codes_used"] > 4
    autoencoder = load_vq(tmp_path / "vqvae")
    pixels = stack_pixels(SCENES.examples(5, 0, 8, WIDTH))
    with torch.inference_mode():
        decoded = autoencoder.decode(autoencoder.encode(pixels))
    assert (decoded - pixels).square().mean() < pixels.square().mean()


def test_the_discriminator_is_trained_from_its_start_step_on(components: Path, tmp_path: Path) -> None:
    copy_of(components, tmp_path, "clip")
    recipe = replace(SHAPES_AUTOENCODER_ADVERSARIAL, adversarial_start=12, loop=ADVERSARIAL_LOOP)
    train_autoencoder(replace(recipe, model=AUTOENCODER.model, width=WIDTH, batch=4), tmp_path)
    lines = log_lines(tmp_path / "autoencoder")
    assert "discriminator" not in lines[2]
    assert lines[-1]["discriminator"] < lines[3]["discriminator"]
    assert lines[-1]["perceptual"] < lines[0]["perceptual"]


def test_a_decoder_recipe_trains_the_decoder_and_leaves_the_encoder_unchanged(components: Path, tmp_path: Path) -> None:
    copy_of(components, tmp_path, "vae", "clip")
    before = load_autoencoder(tmp_path / "vae")
    recipe = replace(SHAPES_DECODER, adversarial_start=12, loop=ADVERSARIAL_LOOP)
    train_autoencoder(replace(recipe, model=AUTOENCODER.model, width=WIDTH, batch=4), tmp_path)
    lines = log_lines(tmp_path / "decoder")
    assert lines[-1]["perceptual"] < lines[0]["perceptual"]
    after = load_autoencoder(tmp_path / "vae")
    assert after.config == before.config
    weights = before.state_dict()
    changed = {
        name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, weights[name])
    }
    assert changed == {"decoder", "post_quant_conv"}


def test_an_autoencoder_can_overfit_eight_images() -> None:
    pixels = stack_pixels(SCENES.examples(1, 0, 8, 16))
    torch.manual_seed(0)
    config = AutoencoderConfig(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    recipe = replace(AUTOENCODER, model=config, kl_weight=1e-6)
    networks = AutoencoderNetworks(AutoencoderKL(config), None)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=3e-3)
    psnr = 0.0
    for step in range(60):
        noise = torch.zeros(8, config.latent_channels, 8, 8)
        loss, metrics = autoencoder_loss(networks, pixels, noise, recipe, None, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        psnr = metrics["psnr"]
    assert psnr > 15
