"""Pictures of checkpoints with other autoencoders than AutoencoderKL's plain form are those of diffusers."""

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.errors import CheckpointError
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.stack import Stack
from pipeline.tasks.generate import Generate
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.rows import Row
from tests.autoencoder_checkpoints import AutoencoderKind, with_autoencoder
from tests.checkpoints import tiny_checkpoint
from tests.family_checkpoints import small_checkpoint
from tests.row_images import image_of

PROMPT = "a red circle"
PIXELS = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {
        "sd15": tiny_checkpoint(root / "sd15"),
        "sd15-inpainting": tiny_checkpoint(root / "sd15-inpainting", "sd15-inpainting"),
        "sdxl": small_checkpoint(root / "sdxl", "sdxl"),
    }


def picture(task: Generate | Inpaint, **row: Any) -> np.ndarray:
    return image_of(task, Row(prompt=PROMPT, seed=5, num_inference_steps=4, guidance_scale=3.0, **row))


def reference_of(kind: str, folder: Path, **options: Any) -> np.ndarray:
    pipeline = getattr(diffusers, kind).from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    given = {"prompt": PROMPT, "num_inference_steps": 4, "guidance_scale": 3.0, **options}
    image = pipeline(generator=torch.Generator().manual_seed(5), **given).images[0]
    pixels = np.asarray(image).astype(int)
    assert pixels.std() > 1  # a flat picture would show nothing
    return pixels


@pytest.mark.parametrize(
    ("base", "kind"),
    [("sd15", "tiny"), ("sd15", "asymmetric"), ("sdxl", "tiny"), ("sdxl", "normalized"), ("sdxl", "plain")],
)
@pytest.mark.parametrize("source", [None, PIXELS], ids=["text", "image"])
def test_generated_pictures_are_diffusers(
    tmp_path: Path, bases: dict[str, Path], base: str, kind: AutoencoderKind, source: np.ndarray | None
) -> None:
    folder = with_autoencoder(bases[base], tmp_path / kind, kind)
    name = "StableDiffusion" + ("XL" if base == "sdxl" else "") + ("Pipeline" if source is None else "Img2ImgPipeline")
    options = {} if source is None else {"image": Image.fromarray(source), "strength": 0.8}
    expected = reference_of(name, folder, **options)
    row = {} if source is None else {"pixels": source, "strength": 0.8}
    actual = picture(Generate(load_stack(folder), RowDefaults()), sampler="ddim", **row)
    assert np.abs(actual - expected).max() <= 1


@pytest.mark.parametrize("base", ["sd15", "sd15-inpainting"])
@pytest.mark.parametrize("kind", ["tiny", "asymmetric"])
@pytest.mark.parametrize("strength", [1.0, 0.75])
def test_inpainted_pictures_are_diffusers(
    tmp_path: Path, bases: dict[str, Path], base: str, kind: AutoencoderKind, strength: float
) -> None:
    folder = with_autoencoder(bases[base], tmp_path / kind, kind)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:48] = 255
    sources = {"image": Image.fromarray(PIXELS), "mask_image": Image.fromarray(mask)}
    expected = reference_of("StableDiffusionInpaintPipeline", folder, **sources, height=64, width=64, strength=strength)
    task = Inpaint(load_stack(folder), RowDefaults())
    actual = picture(task, sampler="ddim", pixels=PIXELS, mask=mask, strength=strength)
    assert np.abs(actual - expected)[mask > 0].max() <= 1


def test_a_known_part_of_the_image_changes_what_an_asymmetric_decoder_paints(
    tmp_path: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Inpaint(load_stack(with_autoencoder(bases["sd15"], tmp_path / "vae", "asymmetric")), RowDefaults())
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 8:48] = 255
    conditioned = picture(task, pixels=PIXELS, mask=mask)
    decode = Stack.decode
    monkeypatch.setattr(Stack, "decode", lambda stack, latents, known: decode(stack, latents))
    assert np.abs(conditioned.astype(int) - picture(task, pixels=PIXELS, mask=mask))[mask > 0].max() > 1


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("tiny", {"act_fn": "mish"}, "act_fn is 'mish'; only 'relu' is supported"),
        ("tiny", {"num_decoder_blocks": [2, 2]}, "num_decoder_blocks has 2 entries"),
        ("tiny", {"shift_factor": 0.1}, "shift_factor is 0.1"),
        ("asymmetric", {"up_block_out_channels": [16, 32, 32]}, "must have 4 entries"),
        ("asymmetric", {"down_block_types": ["AttnDownBlock2D"] * 4}, "unknown class AttnDownBlock2D"),
        ("plain", {"latents_mean": [0, 0, 0, 0]}, "latents_mean and latents_std need each other"),
        ("plain", {"latents_mean": [0, 0], "latents_std": [1, 1]}, "latents_mean has 2 entries, latent_channels is 4"),
        ("plain", {"shift_factor": 0.1}, "shift_factor is 0.1"),
        ("normalized", {}, "latents_mean and latents_std are supported for SDXL alone"),
    ],
)
def test_options_that_diffusers_would_not_honor_are_refused_by_name(
    tmp_path: Path, bases: dict[str, Path], kind: AutoencoderKind, changes: dict[str, Any], message: str
) -> None:
    folder = with_autoencoder(bases["sd15"], tmp_path / kind, kind)
    change_config(folder, **changes)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_stack(folder)


def test_a_normalized_autoencoder_is_refused_for_inpainting(tmp_path: Path, bases: dict[str, Path]) -> None:
    stack = load_stack(with_autoencoder(bases["sdxl"], tmp_path / "vae", "normalized"))
    with pytest.raises(CheckpointError, match="its autoencoder has latents_mean"):
        Inpaint(stack, RowDefaults())


def test_a_consistency_decoder_is_refused_by_name(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = with_autoencoder(bases["sd15"], tmp_path / "vae", "plain")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", "ConsistencyDecoderVAE"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="vae has the unknown class ConsistencyDecoderVAE; supported is"):
        load_stack(folder)
