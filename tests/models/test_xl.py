"""SDXL's family: a checkpoint's pictures are diffusers', from its folder to its pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.diffusion.engine import LaneEngine
from pipeline.diffusion.request import DenoisingRequest
from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.folder import load_stack
from pipeline.tasks.decode import to_levels
from pipeline.tasks.generate import Generate
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.rows import Row
from tests.family_checkpoints import Family, small_checkpoint
from tests.row_images import image_of

PROMPT = "a red circle, a blue square"


def generated(folder: Path, defaults: RowDefaults | None = None, **row: Any) -> np.ndarray:
    values = {"prompt": PROMPT, "seed": 5, "num_inference_steps": 4, **row}
    return image_of(Generate(load_stack(folder), defaults or RowDefaults()), Row(**values))


def reference_of(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": PROMPT, "num_inference_steps": 4, "generator": torch.Generator().manual_seed(5), **options}
    return 255 * pipeline(output_type="np", **given).images[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("xl") / "sdxl", "sdxl")


@pytest.mark.parametrize("family", ["sdxl", "sdxl-turbo", "ssd-1b", "small-sd", "tiny-sd"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_images_of_a_family_are_diffusers(tmp_path: Path, family: Family, scale: float) -> None:
    folder = small_checkpoint(tmp_path / family, family)
    expected = reference_of(DiffusionPipeline.from_pretrained(folder), guidance_scale=scale)
    assert np.abs(generated(folder, guidance_scale=scale) - expected).max() <= 1


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({}, {}),
        ({"negative_prompt": ""}, {"negative_prompt": ""}),
        ({"negative_prompt": "a star"}, {"negative_prompt": "a star"}),
        ({"clip_skip": 1}, {"clip_skip": 1}),
        ({"width": 96}, {"width": 96, "height": 64}),
    ],
)
def test_conditions_of_sdxl_are_diffusers(folder: Path, row: dict[str, Any], options: dict[str, Any]) -> None:
    expected = reference_of(StableDiffusionXLPipeline.from_pretrained(folder), **options)
    actual = generated(folder, **row)
    assert np.abs(actual - expected).max() <= 1
    if row:
        assert np.abs(actual.astype(int) - (generated(folder) if actual.shape[1] == 64 else 0)).max() > 1


def test_sizes_that_a_run_gives_are_those_of_diffusers(folder: Path) -> None:
    defaults = RowDefaults(original_size=(300, 200), crop=(7, 11), target_size=(100, 90))
    expected = reference_of(
        StableDiffusionXLPipeline.from_pretrained(folder),
        original_size=(200, 300),
        crops_coords_top_left=(11, 7),
        target_size=(90, 100),
    )
    assert np.abs(generated(folder, defaults) - expected).max() <= 1
    assert np.abs(generated(folder).astype(int) - generated(folder, defaults)).max() > 1


def test_image_to_image_with_sdxl_and_its_refiner_is_diffusers(tmp_path: Path, folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    source = torch.from_numpy(pixels.transpose(2, 0, 1) / 255).float()[None]
    for each in (folder, small_checkpoint(tmp_path / "refiner", "sdxl-refiner")):
        pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(each)
        expected = reference_of(pipeline, image=source, num_inference_steps=20)
        assert np.abs(generated(each, pixels=pixels, num_inference_steps=20) - expected).max() <= 1


@pytest.mark.parametrize("lanes", [2, 4])
def test_rows_of_other_prompts_and_scales_beside_it_leave_a_row_as_it_is(folder: Path, lanes: int) -> None:
    stack = load_stack(folder)
    task = Generate(stack, RowDefaults())
    prompts: list[dict[str, Any]] = [
        {"prompt": "a red circle", "guidance_scale": 5.0},
        {"prompt": "", "guidance_scale": 1.0},
        {"prompt": "a blue square", "negative_prompt": "", "guidance_scale": 3.0},
    ]
    rows = [task.prepare(Row(seed=seed, num_inference_steps=3, **row)) for seed, row in enumerate(prompts)]

    def results(keys: list[int]) -> dict[Any, Any]:
        engine = LaneEngine(stack.denoise, lanes=lanes, device=stack.device, dtype=stack.dtype)
        return dict(engine.run([task.request(key, rows[key]) for key in keys]))

    together = results([0, 1, 2])
    for key in range(3):
        assert torch.equal(together[key], results([key])[key])


def inpainted(folder: Path, row: Row) -> np.ndarray:
    """Return what the networks make of a row's whole canvas, before it is blended into the image."""
    stack = load_stack(folder)
    task = Inpaint(stack, RowDefaults())
    engine = LaneEngine(stack.denoise, lanes=2, device=stack.device, dtype=stack.dtype)
    request = task.request("only", task.prepare(row))
    assert isinstance(request, DenoisingRequest)
    [(_, latents)] = engine.run([request])
    assert isinstance(latents, torch.Tensor), latents
    return to_levels(stack.decode(latents[None])[0])


@pytest.mark.parametrize("family", ["sdxl", "sdxl-inpainting", "ssd-1b"])
@pytest.mark.parametrize("strength", [{}, {"strength": 1.0}, {"strength": 0.6}])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_inpainting_with_sdxl_is_diffusers(
    tmp_path: Path, family: Family, strength: dict[str, float], scale: float
) -> None:
    folder = small_checkpoint(tmp_path / family, family)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:48] = 255
    expected = reference_of(
        StableDiffusionXLInpaintPipeline.from_pretrained(folder),
        image=Image.fromarray(pixels),
        mask_image=Image.fromarray(mask),
        width=64,
        height=64,
        guidance_scale=scale,
        **strength,
    )
    row = Row(prompt=PROMPT, seed=5, num_inference_steps=4, guidance_scale=scale, pixels=pixels, mask=mask, **strength)
    actual = inpainted(folder, row)
    assert expected.std() > 1  # a flat picture would show nothing
    assert np.abs(actual - expected).max() <= 1


def test_the_sizes_of_an_inpainted_part_are_those_of_its_canvas(folder: Path) -> None:
    task = Inpaint(load_stack(folder), RowDefaults(crop=(3, 4)))
    mask = np.zeros((150, 200), np.uint8)
    mask[16:40, 8:48] = 255
    pixels = np.zeros((150, 200, 3), np.uint8)
    parameters = task.prepare(Row(prompt="", seed=1, width=32, pixels=pixels, mask=mask)).parameters
    assert (parameters.width, parameters.height) == (200, 150)
    assert parameters.original_size == parameters.target_size == (64, 64)
    assert parameters.crop == (3, 4)


def test_an_option_of_another_family_is_refused_by_name(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="--aesthetic-score is for"):
        Generate(load_stack(folder), RowDefaults(aesthetic_score=6.5))
    plain = small_checkpoint(tmp_path / "tiny", "tiny-sd")
    with pytest.raises(CheckpointError, match="--crop is for"):
        Generate(load_stack(plain), RowDefaults(crop=(0, 0)))


def test_more_layers_than_the_text_encoder_has_cannot_be_left_out(folder: Path) -> None:
    with pytest.raises(ValueError, match="clip_skip is 2; the model's text encoder allows 0 to 1"):
        generated(folder, clip_skip=2)
