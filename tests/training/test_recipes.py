"""The recipes at a tiny size: each runs, its losses fall, and what it saves opens as the field's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline  # pyright: ignore[reportPrivateImportUsage]
from transformers import CLIPModel, CLIPTokenizer

from pipeline.models.autoencoder import AutoencoderConfig, AutoencoderKL
from pipeline.models.bert import BertModel
from pipeline.models.checkpoint.components import load_autoencoder, load_vq
from pipeline.models.checkpoint.folder import load_stack
from pipeline.training.conditioning import Kind
from pipeline.training.data.examples import SCENES, TEXTURES, pixels_of, scenes
from pipeline.training.loop import LoopConfig
from pipeline.training.recipes.autoencoder import (
    SHAPES_AUTOENCODER,
    SHAPES_AUTOENCODER_ADVERSARIAL,
    SHAPES_DECODER,
    SHAPES_VQ,
    TEXTURES_AUTOENCODER,
    AutoencoderNetworks,
    autoencoder_loss,
    scale_latents,
    train_autoencoder,
    windows,
)
from pipeline.training.recipes.clip import SHAPES_CLIP, train_clip
from pipeline.training.recipes.diffusion import SHAPES_DIFFUSION, train_diffusion
from pipeline.training.recipes.inpainting import SHAPES_INPAINTING, removal, train_inpainting
from pipeline.training.recipes.upscaler import SCALING_FACTOR, UPSCALER, train_upscaler

CLIP = replace(
    SHAPES_CLIP, hidden=32, embedding=32, image_layers=2, batch=16, loop=LoopConfig(steps=60, learning_rate=3e-3)
)
AUTOENCODER = replace(
    SHAPES_AUTOENCODER, width=32, batch=8, loop=LoopConfig(steps=60, learning_rate=3e-3, warmup_steps=5)
)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP and an autoencoder of little training."""
    folder = tmp_path_factory.mktemp("recipes")
    train_clip(CLIP, folder)
    train_autoencoder(AUTOENCODER, folder)
    return folder


def test_the_contrastive_loss_falls_and_the_clip_opens_in_transformers(output: Path) -> None:
    seen = losses(output / "contrastive")
    assert seen[-1] < seen[0] - 0.1
    clip = CLIPModel.from_pretrained(output / "clip", dtype=torch.float32)
    tokens = CLIPTokenizer.from_pretrained(output / "clip")(["a red circle"], return_tensors="pt")
    told = clip(input_ids=tokens.input_ids, pixel_values=pixels_of(SCENES.examples(0, 0, 1, 64)))
    assert told.logits_per_image.shape == (1, 1)


def test_the_autoencoder_learns_and_its_latents_have_unit_deviation(output: Path) -> None:
    seen = losses(output / "autoencoder")
    assert seen[-1] < 0.85 * seen[0]
    autoencoder = load_autoencoder(output / "vae")
    latents = autoencoder.encode(pixels_of(SCENES.examples(5, 0, 64, 32)))
    assert latents.std().item() == pytest.approx(1.0, abs=0.15)


def test_a_codebook_is_learned_and_used(tmp_path: Path) -> None:
    recipe = replace(SHAPES_VQ, width=32, batch=8, loop=LoopConfig(steps=40, learning_rate=3e-3, warmup_steps=5))
    train_autoencoder(recipe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "autoencoder" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 0.5
    assert lines[-1]["codes_used"] > 4
    autoencoder = load_vq(tmp_path / "vqvae")
    pixels = pixels_of(SCENES.examples(5, 0, 8, 32))
    with torch.inference_mode():
        rebuilt = autoencoder.decode(autoencoder.encode(pixels))
    assert (rebuilt - pixels).square().mean() < pixels.square().mean()


def test_the_discriminator_joins_at_its_step_and_learns(output: Path) -> None:
    loop = LoopConfig(steps=40, learning_rate=1e-3, warmup_steps=1, log_every=10)
    recipe = replace(SHAPES_AUTOENCODER_ADVERSARIAL, batch=4, adversarial_start=20, loop=loop)
    folder = output / "adversarial"
    folder.mkdir()
    (folder / "clip").symlink_to(output / "clip")
    train_autoencoder(recipe, folder)
    lines = [json.loads(line) for line in (folder / "autoencoder" / "log.jsonl").read_text().splitlines()]
    assert "discriminator" not in lines[1]
    assert lines[-1]["discriminator"] < lines[2]["discriminator"]
    assert lines[-1]["perceptual"] < lines[0]["perceptual"]


def test_a_decoder_learns_on_while_its_encoder_stays_as_it_is(output: Path) -> None:
    folder = output / "decoder-alone"
    shutil.copytree(output / "vae", folder / "vae")
    (folder / "clip").symlink_to(output / "clip")
    before = load_autoencoder(folder / "vae")
    loop = LoopConfig(steps=40, learning_rate=1e-3, warmup_steps=5, log_every=10)
    train_autoencoder(replace(SHAPES_DECODER, batch=4, adversarial_start=20, loop=loop), folder)
    lines = [json.loads(line) for line in (folder / "decoder" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["perceptual"] < lines[0]["perceptual"]
    after = load_autoencoder(folder / "vae")
    assert after.config == before.config
    kept = before.state_dict()
    changed = {name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, kept[name])}
    assert changed == {"decoder", "post_quant_conv"}


SMALL_UNET = replace(
    SHAPES_DIFFUSION.unet,
    sample_size=8,
    block_out_channels=(16, 32, 32),
    attention_head_dim=(2, 2, 2),
    norm_num_groups=8,
    cross_attention_dim=32,
)
DIFFUSION = replace(
    SHAPES_DIFFUSION,
    unet=SMALL_UNET,
    pictures=64,
    batch=16,
    loop=LoopConfig(steps=40, learning_rate=2e-3, warmup_steps=5),
)


def beside(output: Path, name: str) -> Path:
    """A new folder that has the autoencoder and the CLIP of `output`."""
    folder = output / name
    folder.mkdir()
    (folder / "vae").symlink_to(output / "vae")
    (folder / "clip").symlink_to(output / "clip")
    return folder


@pytest.mark.parametrize("kind", ["frozen-clip", "bert"])
def test_every_conditioning_makes_a_checkpoint_that_loads(output: Path, kind: Kind) -> None:
    folder = beside(output, kind)
    train_diffusion(replace(DIFFUSION, conditioning=kind, loop=replace(DIFFUSION.loop, steps=4)), folder)
    stack = load_stack(folder)
    assert stack.text is not None
    assert isinstance(stack.text.model, BertModel) == (kind == "bert")
    red, blue = stack.text.encode(["a red circle on a white background", "a blue circle on a white background"])
    assert red.shape == (SHAPES_DIFFUSION.window, SMALL_UNET.cross_attention_dim)
    assert (red - blue).abs().max() > 1e-3
    if kind == "frozen-clip":
        tower = CLIPModel.from_pretrained(output / "clip", dtype=torch.float32).text_model.state_dict()
        kept = stack.text.model.state_dict()
        assert all(torch.equal(value, tower[name]) for name, value in kept.items())


def test_a_tower_that_was_held_still_learns_on_with_its_u_net(output: Path) -> None:
    folder = beside(output, "tuned")
    train_diffusion(replace(DIFFUSION, conditioning="frozen-clip"), folder)
    before = load_stack(folder)
    assert before.text is not None
    tower = before.text.model.state_dict()
    train_diffusion(replace(DIFFUSION, tunes=True, seed=9, loop=replace(DIFFUSION.loop, steps=20)), folder)
    assert losses(folder / "tuning")[0] < losses(folder / "diffusion")[0]  # it does not begin anew
    after = load_stack(folder)
    assert after.text is not None
    assert any(not torch.equal(value, tower[name]) for name, value in after.text.model.state_dict().items())
    assert after.unet.config == before.unet.config


def test_a_diffusion_recipe_makes_a_checkpoint_that_loads_and_the_same_one_twice(output: Path) -> None:
    digests = []
    for name in ("first", "second"):
        folder = beside(output, name)
        train_diffusion(DIFFUSION, folder)
        digests.append(load_stack(folder).weights_sha256)
        seen = losses(folder / "diffusion")
        assert seen[-1] < 0.95 * seen[0]
    assert digests[0] == digests[1]


def test_an_autoencoder_can_learn_eight_pictures_by_heart() -> None:
    pixels = pixels_of(SCENES.examples(1, 0, 8, 32))
    torch.manual_seed(0)
    config = AutoencoderConfig(
        sample_size=32,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
    )
    recipe = replace(AUTOENCODER, model=config, kl_weight=1e-6)
    players = AutoencoderNetworks(AutoencoderKL(config), None)
    optimizer = torch.optim.AdamW(players.parameters(), lr=3e-3)
    psnr = 0.0
    for step in range(60):
        noise = torch.zeros(8, config.latent_channels, 16, 16)
        loss, figures = autoencoder_loss(players, pixels, noise, recipe, None, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        psnr = figures["psnr"]
    assert psnr > 15


def test_inpainting_starts_as_the_text_to_image_model_and_learns_to_look_at_what_is_shown(output: Path) -> None:
    folder = beside(output, "inpainting-checkpoint")
    train_diffusion(replace(DIFFUSION, loop=replace(DIFFUSION.loop, steps=4)), folder)
    plain = load_stack(folder)
    loop = LoopConfig(steps=40, learning_rate=2e-3, warmup_steps=5, log_every=10)
    train_inpainting(replace(SHAPES_INPAINTING, batch=16, loop=loop), folder)
    seen = losses(folder / "inpainting")
    assert seen[-1] < 0.9 * seen[0]
    stack = load_stack(folder)
    filters = stack.unet.conv_in.weight
    assert filters.shape[1] == 9
    assert filters[:, 4:].abs().max() > 1e-3
    tower, kept = plain.text.model.state_dict(), stack.text.model.state_dict()  # pyright: ignore[reportOptionalMemberAccess]
    assert all(torch.equal(value, kept[name]) for name, value in tower.items())


def test_removals_cover_whole_things_and_say_nothing_of_what_is_not_to_come_back() -> None:
    random, erased = Random(0), 0
    for scene in scenes(7, 0, 200):
        removed = removal(scene, random, 64, SHAPES_INPAINTING)
        assert removed.mask.getextrema() == (0, 255)
        gone = [thing for thing in scene.things if thing not in removed.scene.things]
        erased += bool(gone)
        if gone:
            assert removed.caption == ""
            assert removed.mask.getpixel((round(64 * gone[0].x), round(64 * gone[0].y))) == 255
        else:
            assert removed.caption in ("", scene.caption())
    assert 10 < erased < 60


def test_an_upscaler_learns_from_textures_and_opens_as_the_field_s(output: Path) -> None:
    folder = output / "upscaler"
    folder.mkdir()
    source = beside(output, "upscaler-text")
    train_diffusion(replace(DIFFUSION, loop=replace(DIFFUSION.loop, steps=2)), source)
    for name in ("text_encoder", "tokenizer"):
        (folder / name).symlink_to(source / name)
    loop = LoopConfig(steps=30, learning_rate=3e-3, warmup_steps=5, log_every=10)
    train_autoencoder(replace(TEXTURES_AUTOENCODER, width=32, window=6, batch=4, loop=loop), folder)
    unet = replace(UPSCALER.unet, block_out_channels=(16, 32, 32), cross_attention_dim=32, norm_num_groups=8)
    train_upscaler(replace(UPSCALER, unet=unet, width=64, window=12, batch=8, loop=loop), folder)
    seen = losses(folder / "upscaling")
    assert seen[-1] < 0.9 * seen[0]
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert pipeline.unet.config.in_channels == 7
    assert pipeline.vae.config.scaling_factor == SCALING_FACTOR
    latents = load_autoencoder(folder / "vae").encode(pixels_of(TEXTURES.examples(1, 0, 8, 32)))
    assert latents.std().item() == pytest.approx(1.0, abs=0.3)
    assert pipeline.config.max_noise_level == UPSCALER.max_noise_level  # pyright: ignore[reportAttributeAccessIssue]


def test_latents_can_be_made_larger_with_the_same_pictures_out() -> None:
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(replace(AUTOENCODER.model, block_out_channels=(8, 8, 8)))
    pixels, noise = pixels_of(SCENES.examples(1, 0, 2, 32)), torch.randn(2, 4, 8, 8)
    before = autoencoder.posterior(pixels).sample(noise)
    rebuilt = autoencoder.decode_unscaled(before)
    scale_latents(autoencoder, 5.4)
    after = autoencoder.posterior(pixels).sample(noise)
    torch.testing.assert_close(after, 5.4 * before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(autoencoder.decode_unscaled(after), rebuilt, rtol=1e-4, atol=1e-4)


def test_windows_are_one_part_of_latents_and_pixels() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    latents = torch.stack([rows, columns])[None]
    pixels = latents.repeat_interleave(4, 2).repeat_interleave(4, 3)
    places = set()
    for step in range(40):
        part, large = windows(5, f"1/{step}", latents, pixels)
        assert part.shape == (1, 2, 5, 5)
        assert (large == part.repeat_interleave(4, 2).repeat_interleave(4, 3)).all()
        places.add(tuple(part[0, :, 0, 0].tolist()))
    assert {row for row, _ in places} == {column for _, column in places} == {0.0, 1.0, 2.0, 3.0}
