"""A row's whole picture against diffusers' pipelines, for a batch of one, on small random checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import schedulers
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.diffusion.schedule import NoiseScheduleConfig
from pipeline.models.checkpoint.folder import load_stack
from pipeline.tasks.generate import Generate
from pipeline.tasks.rows import Row
from tests.checkpoints import tiny_checkpoint
from tests.row_images import image_of

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_3m_karras": ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "euler_beta": ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}


@pytest.fixture(scope="module", params=["sd15", "sd21"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    tiny_checkpoint(folder, family=request.param)
    return folder


def picture(folder: Path, row: dict[str, Any]) -> np.ndarray:
    return image_of(Generate(load_stack(folder), RowDefaults()), Row(**row))


def reference(folder: Path, sampler: str, kind: type = StableDiffusionPipeline) -> Any:
    pipeline = kind.from_pretrained(folder)
    name, changes = SAMPLERS[sampler]
    pipeline.scheduler = getattr(schedulers, name).from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def levels_apart(ours: np.ndarray, theirs: Image.Image) -> int:
    other = np.asarray(theirs)
    assert ours.shape == other.shape
    assert other.std() > 1  # a flat picture would show nothing
    return int(np.abs(ours.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_text_to_image_is_diffusers_picture(folder: Path, sampler: str) -> None:
    row = {"prompt": "a red circle", "seed": 11, "num_inference_steps": 6, "guidance_scale": 4.0, "sampler": sampler}
    row |= {"negative_prompt": "blue"}
    expected = reference(folder, sampler)(
        "a red circle",
        negative_prompt="blue",
        num_inference_steps=6,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(11),
    )
    assert levels_apart(picture(folder, row), expected.images[0]) <= 1


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "lms"])  # see test_samplers.py
def test_image_to_image_is_diffusers_picture(folder: Path, sampler: str) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    row = {"prompt": "a red circle", "seed": 5, "num_inference_steps": 8, "guidance_scale": 3.0, "sampler": sampler}
    row |= {"strength": 0.6, "pixels": pixels}
    expected = reference(folder, sampler, StableDiffusionImg2ImgPipeline)(
        "a red circle",
        image=Image.fromarray(pixels),
        strength=0.6,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    )
    assert levels_apart(picture(folder, row), expected.images[0]) <= 1


@pytest.mark.parametrize("guidance_scale", [0.0, 0.5, 1.0])
def test_a_picture_of_another_size_and_without_guidance_is_diffusers_picture(
    folder: Path, guidance_scale: float
) -> None:
    row = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 4, "sampler": "ddim"}
    row |= {"guidance_scale": guidance_scale}
    row |= {"width": 96, "height": 72}
    expected = reference(folder, "ddim")(
        "a red circle",
        width=96,
        height=72,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(1),
    )
    assert levels_apart(picture(folder, row), expected.images[0]) <= 1


def test_guidance_rescale_is_diffusers_picture(folder: Path) -> None:
    row = {"prompt": "a red circle", "seed": 1, "num_inference_steps": 4, "guidance_scale": 7.0, "sampler": "ddim"}
    expected = reference(folder, "ddim")(
        "a red circle",
        num_inference_steps=4,
        guidance_scale=7.0,
        guidance_rescale=0.7,
        generator=torch.Generator().manual_seed(1),
    )
    assert levels_apart(picture(folder, row | {"guidance_rescale": 0.7}), expected.images[0]) <= 1


def test_a_size_that_the_autoencoder_cannot_make_is_refused(folder: Path) -> None:
    task = Generate(load_stack(folder), RowDefaults())
    with pytest.raises(ValueError, match=r"width is 7; give a multiple of 8"):
        task.prepare(Row(prompt="a red circle", seed=1, width=7))
    photograph = np.zeros((4800, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r"height is 4800; give a multiple of 8 from 8 to 4096 as height"):
        task.prepare(Row(prompt="a red circle", seed=1, pixels=photograph))
    assert task.prepare(Row(prompt="a red circle", seed=1, pixels=photograph, height=512)).parameters.height == 512


def test_what_a_row_leaves_open_comes_from_the_run_then_from_the_checkpoint(folder: Path) -> None:
    task = Generate(load_stack(folder), RowDefaults(num_inference_steps=9, negative_prompt="blur"))
    expected = NoiseScheduleConfig.from_dict(task.stack.schedule_config).sampler
    row = Row(prompt="a red circle", seed=1)
    parameters = task.parameters(row)
    assert (parameters.num_inference_steps, parameters.negative_prompt) == (9, "blur")
    assert (parameters.guidance_scale, parameters.sampler, parameters.strength) == (7.5, expected, None)
    assert task.parameters(replace(row, num_inference_steps=3)).num_inference_steps == 3
