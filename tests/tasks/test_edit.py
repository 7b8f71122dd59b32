"""Images edited by instructions (InstructPix2Pix) against diffusers' pipelines for a batch of one."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image

from pipeline.config import RowDefaults, RunConfig
from pipeline.errors import CheckpointError, InvalidManifestError
from pipeline.models.checkpoint.folder import load_stack
from pipeline.run.check import check_run
from pipeline.tasks.generate import Generate
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.rows import Row
from tests.checkpoints import make_lively, tiny_checkpoint
from tests.family_checkpoints import small_checkpoint
from tests.row_images import image_of

PROMPT = "a red circle"
PIXELS = np.random.default_rng(3).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def sdxl_editor(folder: Path) -> Path:
    """Save a small SDXL checkpoint whose U-Net takes an image's latents too."""
    small_checkpoint(folder, "sdxl")
    config = json.loads((folder / "unet" / "config.json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(31)
        unet: Any = UNet2DConditionModel.from_config({**config, "in_channels": 8})
        make_lively(unet, AutoencoderKL.from_pretrained(folder / "vae"))
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edit") / request.param
    return sdxl_editor(folder) if request.param == "sdxl" else small_checkpoint(folder, "instruct-pix2pix")


def edited(folder: Path, lanes: int = 2, **row: Any) -> np.ndarray:
    values = {"prompt": PROMPT, "seed": 5, "num_inference_steps": 4, "pixels": PIXELS, **row}
    return image_of(Generate(load_stack(folder), RowDefaults()), Row(**values), lanes=lanes)


def reference_of(folder: Path, **options: Any) -> np.ndarray:
    is_xl = (folder / "text_encoder_2").exists()
    name = f"StableDiffusion{'XL' if is_xl else ''}InstructPix2PixPipeline"
    pipeline = getattr(diffusers, name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": PROMPT, "num_inference_steps": 4, "image": Image.fromarray(PIXELS), **options}
    size = {"height": 64, "width": 96} if is_xl else {}
    image = pipeline(generator=torch.Generator().manual_seed(5), **size, **given).images[0]
    pixels = np.asarray(image).astype(int)
    assert pixels.std() > 1  # a flat picture would show nothing
    return pixels


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 3.0, "image_guidance_scale": 2.5, "negative_prompt": "blue"},
        {"guidance_scale": 3.0, "image_guidance_scale": 1.0},
        {"image_guidance_scale": 0.9},
        {"guidance_scale": 1.0},
    ],
)
def test_edited_images_are_diffusers(folder: Path, options: dict[str, Any]) -> None:
    assert np.abs(edited(folder, **options) - reference_of(folder, **options)).max() <= 1


def test_the_image_scale_changes_the_image_but_the_number_of_lanes_does_not_matter(folder: Path) -> None:
    image = edited(folder, image_guidance_scale=2.5)
    assert np.abs(image.astype(int) - edited(folder)).max() > 1
    assert np.abs(image.astype(int) - edited(folder, lanes=5, image_guidance_scale=2.5)).max() <= 1


def test_the_parameters_in_force_are_recorded_with_diffusers_defaults(folder: Path) -> None:
    parameters = Generate(load_stack(folder), RowDefaults()).parameters(Row(prompt=PROMPT, seed=1, pixels=PIXELS))
    given = parameters.num_inference_steps, parameters.image_guidance_scale, parameters.strength
    assert given == (100, 1.5, None)
    assert (parameters.width, parameters.height) == (96, 64)
    run = Generate(load_stack(folder), RowDefaults(image_guidance_scale=1.2))
    assert run.parameters(Row(prompt=PROMPT, seed=1, pixels=PIXELS)).image_guidance_scale == 1.2


def test_what_a_model_does_not_take_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    stack, plain = load_stack(folder), load_stack(tiny_checkpoint(tmp_path / "plain"))
    with pytest.raises(CheckpointError, match="--strength is for image to image"):
        Generate(stack, RowDefaults(strength=0.5))
    with pytest.raises(CheckpointError, match="--image-guidance-scale is for models that edit images"):
        Generate(plain, RowDefaults(image_guidance_scale=1.5))
    with pytest.raises(CheckpointError, match="is made for editing images .its U-Net takes 8 channels"):
        Inpaint(stack, RowDefaults())
    task = Generate(stack, RowDefaults())
    with pytest.raises(ValueError, match="it has no image, which this model needs"):
        task.prepare(Row(prompt=PROMPT, seed=1))
    with pytest.raises(ValueError, match="strength is 0.5; it is for image to image"):
        task.prepare(Row(prompt=PROMPT, seed=1, pixels=PIXELS, strength=0.5))
    with pytest.raises(ValueError, match="image_guidance_scale is 2.0; this model does not edit images"):
        Generate(plain, RowDefaults()).prepare(Row(prompt=PROMPT, seed=1, image_guidance_scale=2.0))


def test_rows_without_an_image_are_found_before_the_run(folder: Path, tmp_path: Path) -> None:
    manifest, output = tmp_path / "manifest.parquet", str(tmp_path / "out")
    config = RunConfig(task="generate", manifest=str(manifest), output=output, model=str(folder))
    pq.write_table(pa.table({"id": ["a", "b"], "prompt": ["x", "y"], "image": ["a.png", None]}), manifest)
    with pytest.raises(InvalidManifestError, match=r'row 1 \(id "b"\): it has no image, which this model needs'):
        check_run(config)
    pq.write_table(pa.table({"id": ["a"], "prompt": ["x"], "image_guidance_scale": [-1.0], "image": ["a"]}), manifest)
    with pytest.raises(InvalidManifestError, match=r"image_guidance_scale is -1.0; give a number of 0 or more"):
        check_run(config)
