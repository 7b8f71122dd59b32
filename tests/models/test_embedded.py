"""The quality of the embedded checkpoints, and their compatibility with diffusers."""

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
from tests.benchmarks.score_inpainting import inpainting_row, thing_mask, with_other_thing

COUNT = 6
PIPELINES = {
    "shapes": "StableDiffusionPipeline",
    "shapes-inpainting": "StableDiffusionInpaintPipeline",
    "shapes-lcm": "LatentConsistencyModelPipeline",
    "upscaler": "StableDiffusionUpscalePipeline",
}


def accuracy(images: list[Any], scenes: list[Scene]) -> float:
    """Return the fraction of correct attributes."""
    counts = Counter(
        is_correct
        for image, scene in zip(images, scenes, strict=True)
        for _, is_correct in check_attributes(image, scene)
    )
    return counts[True] / counts.total()


@pytest.mark.parametrize("model", ["shapes", "shapes-lcm"])
@pytest.mark.parametrize(("things", "min_accuracy"), [(1, 0.85), (2, 0.65)])
def test_generated_images_have_the_attributes_in_their_captions(model: str, things: int, min_accuracy: float) -> None:
    task, scenes = Generate(load_stack(EMBEDDED / model), RowDefaults()), held_out(things, COUNT)
    assert accuracy(generate_images(task, [{"prompt": scene.caption()} for scene in scenes]), scenes) >= min_accuracy
    others = generate_images(task, [{"prompt": scene.caption()} for scene in reversed(scenes)])
    assert accuracy(others, scenes) < 0.6


def test_inpainting_draws_the_prompted_thing_or_removes_it_if_the_prompt_is_empty() -> None:
    task, scenes, random = (
        Inpaint(load_stack(EMBEDDED / "shapes-inpainting"), RowDefaults()),
        held_out(1, COUNT),
        Random(0),
    )
    targets = [with_other_thing(scene, random) for scene in scenes]
    replaced = generate_images(
        task, [inpainting_row(scene, other.caption()) for scene, other in zip(scenes, targets, strict=True)]
    )
    assert accuracy(replaced, targets) >= 0.7
    removed = generate_images(task, [inpainting_row(scene, "") for scene in scenes])
    errors = [
        np.abs(image.astype(int) - np.asarray(draw(replace(scene, things=()))))[thing_mask(scene) > 0].mean()
        for scene, image in zip(scenes, removed, strict=True)
    ]
    assert np.median(errors) < 20


def test_the_upscaler_has_a_higher_psnr_than_bicubic_enlarging() -> None:
    task = Upscale(load_stack(EMBEDDED / "upscaler"), RowDefaults())
    targets = [draw(scene, 256) for scene in held_out(2, COUNT)]
    small = [image.reduce(4) for image in targets]
    bicubic = [np.asarray(image.resize((256, 256), Image.Resampling.BICUBIC)) for image in small]
    enlarged = generate_images(task, [{"pixels": np.asarray(image)} for image in small])

    def mean_psnr(images: list[Any]) -> float:
        pairs = zip(images, targets, strict=True)
        return float(np.mean([psnr(float(np.square(one - np.asarray(other, float)).mean())) for one, other in pairs]))

    assert mean_psnr(enlarged) >= mean_psnr(bicubic) + 2


@pytest.mark.parametrize("name", PIPELINES)
def test_diffusers_loads_the_same_weights_with_the_pipeline_of_the_task(name: str) -> None:
    import diffusers

    pipeline = getattr(diffusers, PIPELINES[name]).from_pretrained(EMBEDDED / name)
    weights = load_stack(EMBEDDED / name).unet.state_dict()
    diffusers_weights = pipeline.unet.state_dict()
    assert weights.keys() == diffusers_weights.keys()
    assert all((weights[key] == diffusers_weights[key]).all() for key in weights)
