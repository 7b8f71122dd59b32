"""Few-step checkpoints against diffusers' pipelines: LCM, LCM for SDXL, SDXL Turbo."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_img2img import (
    LatentConsistencyModelImg2ImgPipeline,
)
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.diffusion.engine import LaneEngine
from pipeline.models.checkpoint.folder import load_stack
from pipeline.tasks.generate import Generate
from pipeline.tasks.rows import Row
from tests.family_checkpoints import Family, small_checkpoint

PROMPT = "a red circle"


def generated(folder: Path, **row: Any) -> tuple[np.ndarray, int]:
    """Return a row's image and the number of evaluations of the network that it took."""
    stack = load_stack(folder)
    task = Generate(stack, RowDefaults())
    engine = LaneEngine(stack.denoise, lanes=2, device=stack.device, dtype=stack.dtype)
    prepared = task.prepare(Row(**{"prompt": PROMPT, "seed": 5, **row}))
    request = task.request("only", prepared)
    [(_, latents)] = engine.run([request])
    assert isinstance(latents, torch.Tensor), latents
    return task.decode(latents, prepared), len(request.table) * len(request.conditions)


def reference_of(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return 255 * pipeline(PROMPT, output_type="np", generator=torch.Generator().manual_seed(5), **options).images[0]


@pytest.mark.parametrize(
    ("family", "steps", "scale"),
    [
        ("lcm", 4, 8.5),
        ("lcm", 1, 1.0),
        ("lcm", 8, 0.0),
        ("lcm-sdxl", 4, 8.0),
        ("lcm-sdxl", 2, 1.5),
        ("sdxl-turbo", 1, 0.0),
        ("sdxl-turbo", 4, 0.0),
    ],
)
def test_a_few_steps_are_diffusers_picture(tmp_path: Path, family: Family, steps: int, scale: float) -> None:
    folder = small_checkpoint(tmp_path / family, family)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    expected = reference_of(pipeline, num_inference_steps=steps, guidance_scale=scale)
    actual, evaluations = generated(folder, num_inference_steps=steps, guidance_scale=scale)
    assert expected.std() > 1  # a flat picture would show nothing
    assert np.abs(actual - expected).max() <= 1
    assert evaluations == steps  # guidance is the network's own: one evaluation a step


def test_the_guidance_scale_of_lcm_changes_its_picture(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "lcm", "lcm")
    pictures = [generated(folder, num_inference_steps=2, guidance_scale=scale)[0].astype(int) for scale in (1.0, 8.5)]
    assert np.abs(pictures[0] - pictures[1]).max() > 1


def test_lcm_runs_with_diffusers_defaults(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "lcm", "lcm")
    expected = reference_of(DiffusionPipeline.from_pretrained(folder))
    assert np.abs(generated(folder)[0] - expected).max() <= 1


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("family", ["lcm", "lcm-sdxl"])
def test_image_to_image_with_lcm_is_diffusers_picture(tmp_path: Path, family: Family, strength: float) -> None:
    """LCM's own pipeline takes every step of the part that `strength` leaves; that of SDXL leaves out steps."""
    folder = small_checkpoint(tmp_path / family, family)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    kind = LatentConsistencyModelImg2ImgPipeline if family == "lcm" else StableDiffusionXLImg2ImgPipeline
    options: dict[str, Any] = {"num_inference_steps": 4, "strength": strength, "guidance_scale": 5.0}
    expected = reference_of(kind.from_pretrained(folder), image=Image.fromarray(pixels), **options)
    assert np.abs(generated(folder, pixels=pixels, **options)[0] - expected).max() <= 1


def test_more_steps_than_lcm_was_distilled_for_are_refused(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "lcm", "lcm")
    pixels = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="num_inference_steps is 20; give at most 15, the scheduler's original_inf"):
        generated(folder, pixels=pixels, num_inference_steps=20, strength=0.3)
