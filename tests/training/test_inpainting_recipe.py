"""The inpainting recipe and its examples."""

from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from pipeline.models.checkpoint.folder import load_stack
from pipeline.training.data.examples import scenes
from pipeline.training.data.inpainting import inpainting_example
from pipeline.training.loop import LoopConfig
from pipeline.training.recipes.inpainting import SHAPES_INPAINTING, train_inpainting
from tests.training.tiny_recipes import copy_of, losses


def test_the_u_net_learns_to_use_the_mask_channels_and_the_text_encoder_is_unchanged(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = copy_of(checkpoint, tmp_path)
    before = load_stack(checkpoint)
    loop = LoopConfig(steps=32, learning_rate=2e-3, warmup_steps=5, log_every=8)
    train_inpainting(replace(SHAPES_INPAINTING, batch=16, loop=loop), folder)
    values = losses(folder / "inpainting")
    assert values[-1] < 0.9 * values[0]
    after = load_stack(folder)
    filters = after.unet.conv_in.weight
    assert filters.shape[1] == 9
    assert filters[:, 4:].abs().max() > 1e-3
    assert before.text is not None
    assert after.text is not None
    weights = after.text.encoders[0].model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.text.encoders[0].model.state_dict().items())


def test_masks_cover_whole_things_and_the_caption_is_empty_where_a_thing_is_removed() -> None:
    random, removals = Random(0), 0
    for scene in scenes(7, 0, 200):
        example = inpainting_example(scene, random, 64, removal=0.4, caption_dropout=0.1)
        assert example.mask.getextrema() == (0, 255)
        removed = [thing for thing in scene.things if thing not in example.scene.things]
        removals += bool(removed)
        if removed:
            assert example.caption == ""
            assert example.mask.getpixel((round(64 * removed[0].x), round(64 * removed[0].y))) == 255
        else:
            assert example.caption in ("", scene.caption())
    assert 10 < removals < 60
