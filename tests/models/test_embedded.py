"""The embedded checkpoints generate, inpaint and upscale as their captions and masks require."""

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import EMBEDDED
from pipeline.tasks.generate import Generate
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.upscale import Upscale
from pipeline.training.data.drawing import draw
from pipeline.training.data.scenes import Scene
from tests.benchmarks.attributes import check_attributes, generate_images, held_out, psnr
from tests.benchmarks.score_inpainting import hole, other_thing, row

COUNT = 6
PEERS = {
    "shapes": "StableDiffusionPipeline",
    "shapes-inpainting": "StableDiffusionInpaintPipeline",
    "upscaler": "StableDiffusionUpscalePipeline",
}


def right(pictures: list[Any], scenes: list[Scene]) -> float:
    """The part of the attributes that are right."""
    verdicts = Counter(
        verdict
        for picture, scene in zip(pictures, scenes, strict=True)
        for _, verdict in check_attributes(picture, scene)
    )
    return verdicts[True] / verdicts.total()


@pytest.mark.parametrize(("things", "least"), [(1, 0.85), (2, 0.65)])
def test_what_a_caption_says_is_in_the_picture(things: int, least: float) -> None:
    task, scenes = Generate(load_stack(EMBEDDED / "shapes"), RowDefaults()), held_out(things, COUNT)
    assert right(generate_images(task, [{"prompt": scene.caption()} for scene in scenes]), scenes) >= least
    others = generate_images(task, [{"prompt": scene.caption()} for scene in reversed(scenes)])
    assert right(others, scenes) < 0.6


def test_a_hole_holds_what_is_asked_for_and_nothing_where_nothing_is_said() -> None:
    task, scenes, random = (
        Inpaint(load_stack(EMBEDDED / "shapes-inpainting"), RowDefaults()),
        held_out(1, COUNT),
        Random(0),
    )
    wanted = [other_thing(scene, random) for scene in scenes]
    asked = generate_images(task, [row(scene, other.caption()) for scene, other in zip(scenes, wanted, strict=True)])
    assert right(asked, wanted) >= 0.7
    emptied = generate_images(task, [row(scene, "") for scene in scenes])
    errors = [
        np.abs(picture.astype(int) - np.asarray(draw(replace(scene, things=()))))[hole(scene) > 0].mean()
        for scene, picture in zip(scenes, emptied, strict=True)
    ]
    assert np.median(errors) < 20


def test_an_enlarged_scene_is_nearer_to_the_large_one_than_bicubic_makes_it() -> None:
    task = Upscale(load_stack(EMBEDDED / "upscaler"), RowDefaults())
    wanted = [draw(scene, 256) for scene in held_out(2, COUNT)]
    small = [picture.reduce(4) for picture in wanted]
    smooth = [np.asarray(picture.resize((256, 256), Image.Resampling.BICUBIC)) for picture in small]
    enlarged = generate_images(task, [{"pixels": np.asarray(picture)} for picture in small])

    def decibels(pictures: list[Any]) -> float:
        pairs = zip(pictures, wanted, strict=True)
        return float(np.mean([psnr(float(np.square(one - np.asarray(other, float)).mean())) for one, other in pairs]))

    assert decibels(enlarged) >= decibels(smooth) + 2


@pytest.mark.parametrize("name", PEERS)
def test_diffusers_opens_the_folder_as_what_it_is(name: str) -> None:
    import diffusers

    pipeline = getattr(diffusers, PEERS[name]).from_pretrained(EMBEDDED / name)
    ours = load_stack(EMBEDDED / name).unet.state_dict()
    theirs = pipeline.unet.state_dict()
    assert ours.keys() == theirs.keys()
    assert all((ours[key] == theirs[key]).all() for key in ours)
