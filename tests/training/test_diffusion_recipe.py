"""The text-to-image recipes: every conditioning, fine-tuning, and the same weights for the same seed."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import CLIPModel

from pipeline.models.bert import BertModel
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.stack import Stack
from pipeline.training.recipes.diffusion import train_diffusion
from tests.training.tiny_recipes import DIFFUSION, copy_of, losses


def assert_text_is_encoded(stack: Stack) -> None:
    assert stack.text is not None
    red, blue = (stack.text.encode(f"a {color} circle on a white background").states for color in ("red", "blue"))
    assert red.shape == (DIFFUSION.window, DIFFUSION.unet.cross_attention_dim)
    assert (red - blue).abs().max() > 1e-3


def test_the_loss_falls_and_the_same_recipe_gives_the_same_checkpoint(
    components: Path, checkpoint: Path, tmp_path: Path
) -> None:
    values = losses(checkpoint / "diffusion")
    assert values[-1] < 0.95 * values[0]
    copy_of(components, tmp_path, "vae")
    train_diffusion(DIFFUSION, tmp_path)
    assert load_stack(tmp_path).weights_sha256 == load_stack(checkpoint).weights_sha256


def test_a_frozen_clip_keeps_its_weights(components: Path, frozen_clip_checkpoint: Path) -> None:
    stack = load_stack(frozen_clip_checkpoint)
    assert_text_is_encoded(stack)
    clip = CLIPModel.from_pretrained(components / "clip", dtype=torch.float32).text_model.state_dict()
    weights = stack.text.encoders[0].model.state_dict()  # pyright: ignore[reportOptionalMemberAccess]
    assert all(torch.equal(value, clip[name]) for name, value in weights.items())


def test_a_bert_recipe_makes_a_checkpoint_that_loads(components: Path, tmp_path: Path) -> None:
    copy_of(components, tmp_path, "vae")
    train_diffusion(replace(DIFFUSION, conditioning="bert", loop=replace(DIFFUSION.loop, steps=4)), tmp_path)
    stack = load_stack(tmp_path)
    assert_text_is_encoded(stack)
    assert isinstance(stack.text.encoders[0].model, BertModel)  # pyright: ignore[reportOptionalMemberAccess]


def test_fine_tuning_starts_from_the_checkpoint_and_trains_its_text_encoder(
    frozen_clip_checkpoint: Path, tmp_path: Path
) -> None:
    folder = copy_of(frozen_clip_checkpoint, tmp_path)
    before = load_stack(folder)
    train_diffusion(replace(DIFFUSION, fine_tune=True, seed=9, loop=replace(DIFFUSION.loop, steps=12)), folder)
    assert losses(folder / "tuning")[0] < losses(folder / "diffusion")[0]
    after = load_stack(folder)
    assert before.text is not None
    assert after.text is not None
    weights = before.text.encoders[0].model.state_dict()
    trained = after.text.encoders[0].model.state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in trained.items())
    assert after.unet.config == before.unet.config
