"""Inpainting against diffusers' pipeline on small random checkpoints, and what of a picture it leaves alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.diffusion.engine import LaneEngine
from pipeline.images import masks
from pipeline.images.alpha import flatten
from pipeline.images.resize import to_gray
from pipeline.inference.task import RowResult
from pipeline.inference.worker import LaneWorker
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.stack import Stack
from pipeline.tasks.decode import to_levels
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.rows import Row
from tests.checkpoints import Family, tiny_checkpoint

SETTINGS: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 3.0}


@pytest.fixture(scope="module", params=["sd15-inpainting", "sd15"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family: Family = request.param
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / family, family)


@pytest.fixture(scope="module")
def stack(folder: Path) -> Stack:
    return load_stack(folder)


def painted(stack: Stack, *rows: dict[str, Any], **defaults: Any) -> list[RowResult]:
    engine = LaneEngine(stack.denoise, lanes=2, device=stack.device, dtype=stack.dtype)
    lanes = LaneWorker(Inpaint(stack, RowDefaults(**defaults)), engine, threads=1, report=lambda amounts: None)
    outcomes = lanes.run([Row(**row) for row in rows])
    lanes.close()
    assert all(isinstance(outcome, RowResult) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, RowResult)]


def row_of(height: int = 64, width: int = 64, **changes: Any) -> dict[str, Any]:
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[16:40, 8:48] = 255
    row = {"prompt": "a red circle", "seed": 5, "pixels": pixels, "mask": mask, "sampler": "ddim", **SETTINGS}
    return row | changes


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_what_is_painted_is_diffusers_picture(folder: Path, stack: Stack, strength: float) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    row = row_of(strength=strength)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a red circle",
        image=Image.fromarray(row["pixels"]),
        mask_image=Image.fromarray(row["mask"]),
        height=64,
        width=64,
        strength=strength,
        generator=torch.Generator().manual_seed(5),
        **SETTINGS,
    ).images[0]  # pyright: ignore[reportAttributeAccessIssue]
    theirs = np.asarray(expected).astype(int)
    [result] = painted(stack, row)
    white = row["mask"] > 0
    assert theirs[white].std() > 1  # a flat picture would show nothing
    assert np.abs(result.pixels[white].astype(int) - theirs[white]).max() <= 1
    assert (result.pixels[~white] == row["pixels"][~white]).all()
    whole = Inpaint(stack, RowDefaults())
    prepared = whole.prepare(Row(**row))
    [(_, latents)] = LaneEngine(stack.denoise, lanes=2, device="cpu", dtype=torch.float32).run(
        [request for request in [whole.request("only", prepared)] if not isinstance(request, np.ndarray)]
    )
    assert isinstance(latents, torch.Tensor)
    decoded = to_levels(stack.decode(latents[None])[0])
    assert np.abs(decoded.astype(int) - theirs).max() <= 1


def test_only_a_large_pictures_hole_and_its_feather_change(stack: Stack) -> None:
    row = row_of(150, 211)
    [result] = painted(stack, row, mask_dilate=2, mask_feather=4)
    changed = (result.pixels != row["pixels"]).any(2)
    assert result.pixels.shape == (150, 211, 3)
    assert changed[16:40, 8:48].mean() > 0.9
    changed[16 - 6 : 40 + 6, 8 - 6 : 48 + 6] = False
    assert not changed.any()


def test_an_empty_mask_gives_the_picture_back_and_records_no_steps(stack: Stack) -> None:
    empty, full = row_of(mask=np.zeros((8, 8), np.uint8)), row_of(mask=np.full((8, 8), 255, np.uint8))
    left, result = painted(stack, empty, full)
    assert (left.pixels == empty["pixels"]).all()
    assert (left.parameters.num_inference_steps, left.parameters.strength) == (0, 0.0)
    assert (result.pixels != full["pixels"]).any(2).mean() > 0.9
    assert (result.parameters.num_inference_steps, result.parameters.strength) == (5, 1.0)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_gray_and_alpha_are_kept_and_what_is_painted_is_opaque(stack: Stack, channels: int) -> None:
    pixels = row_of()["pixels"]
    alpha = np.random.default_rng(4).choice(np.array([0, 90, 255], np.uint8), (64, 64, 1))
    given = np.concatenate([pixels[..., : (channels + 1) // 2 * 2 - 1], alpha], axis=2)[..., :channels]
    empty, row = row_of(pixels=given, mask=np.zeros((64, 64), np.uint8)), row_of(pixels=given)
    on_white = row_of(pixels=flatten(given))
    [left, result, opaque] = painted(stack, empty, row, on_white)
    assert (left.pixels == given).all()
    white = row["mask"] > 0
    assert result.pixels.shape == given.shape
    assert (result.pixels[~white] == given[~white]).all()
    expected = to_gray(opaque.pixels)[..., None] if channels < 3 else opaque.pixels
    assert (result.pixels[white][:, : expected.shape[2]] == expected[white]).all()
    if channels in (2, 4):
        assert (result.pixels[white][:, -1] == 255).all()


def test_the_mask_options_are_recorded_and_a_mask_is_computed_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return masks.compute_opacity(*arguments, **options)

    monkeypatch.setattr("pipeline.tasks.inpaint.compute_opacity", counted)
    [result] = painted(stack, row_of(), mask_dilate=2, mask_feather=4)
    recorded = [getattr(result.parameters, name) for name in ("mask_invert", "mask_dilate", "mask_feather")]
    assert recorded == [False, 2, 4]
    assert len(calls) == 1
