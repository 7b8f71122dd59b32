"""Super-resolution against diffusers' pipelines on small random checkpoints, and what becomes of any size and mode."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import RowDefaults
from pipeline.diffusion.engine import LaneEngine
from pipeline.diffusion.tiles import Tiling
from pipeline.errors import CheckpointError
from pipeline.images.colors import block_means
from pipeline.images.resize import resize
from pipeline.images.visible_colors import visible_colors
from pipeline.inference.task import Outcome, RowResult
from pipeline.inference.worker import LaneWorker
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.stack import Stack
from pipeline.tasks.decode import decode_tiled
from pipeline.tasks.generate import Generate
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.rows import Row
from pipeline.tasks.upscale import Upscale
from tests.checkpoints import UPSCALER_SIDE, tiny_checkpoint, tiny_paper_upscaler, tiny_upscaler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_upscaler(tmp_path_factory.mktemp("checkpoint") / "x4")


@pytest.fixture(scope="module")
def stack(folder: Path) -> Stack:
    return load_stack(folder)


@pytest.fixture(scope="module")
def paper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_paper_upscaler(tmp_path_factory.mktemp("checkpoint") / "ldm-sr")


def outcomes(stack: Stack, *rows: dict[str, Any], **defaults: Any) -> list[Outcome]:
    engine = LaneEngine(stack.denoise, lanes=4, device=stack.device, dtype=stack.dtype)
    lanes = LaneWorker(Upscale(stack, RowDefaults(**defaults)), engine, threads=1, report=lambda amounts: None)
    actual = lanes.run([Row(**row) for row in rows])
    lanes.close()
    return actual


def enlarged(stack: Stack, *rows: dict[str, Any], **defaults: Any) -> list[RowResult]:
    actual = outcomes(stack, *rows, **defaults)
    assert all(isinstance(outcome, RowResult) for outcome in actual), actual
    return [outcome for outcome in actual if isinstance(outcome, RowResult)]


def row_of(height: int = 32, width: int = 32, channels: int = 3, **changes: Any) -> dict[str, Any]:
    y, x, _ = np.mgrid[0:height, 0:width, 0:channels]
    noise = np.random.default_rng(3).integers(0, 60, (height, width, channels))
    pixels = (noise + 90 + 60 * np.sin(x / 5) + 40 * np.cos(y / 7)).clip(0, 255).astype(np.uint8)
    return {"prompt": "a red circle", "seed": 5, "pixels": pixels, "num_inference_steps": 2} | changes


def levels_apart(ours: np.ndarray, theirs: Image.Image) -> int:
    other = np.asarray(theirs).astype(int)
    assert ours.shape == other.shape
    assert other.std() > 1  # a flat picture would show nothing
    return int(np.abs(ours.astype(int) - other).max())


@pytest.mark.parametrize(("noise_level", "guidance_scale"), [(20, 4.0), (300, 1.0)])
def test_an_enlarged_picture_is_diffusers_picture(
    folder: Path, stack: Stack, noise_level: int, guidance_scale: float
) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale import StableDiffusionUpscalePipeline

    row = row_of(24, 32, noise_level=noise_level, guidance_scale=guidance_scale, num_inference_steps=4)
    row["negative_prompt"] = "blue"
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        row["prompt"],
        image=Image.fromarray(row["pixels"]),
        negative_prompt="blue",
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        noise_level=noise_level,
        generator=torch.Generator().manual_seed(5),
    ).images[0]  # pyright: ignore[reportAttributeAccessIssue]
    [result] = enlarged(stack, row)
    assert levels_apart(result.pixels, expected) <= 1
    assert result.parameters.noise_level == noise_level


def test_without_text_an_enlarged_picture_is_diffusers_picture(paper_folder: Path) -> None:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import (
        LDMSuperResolutionPipeline,
    )

    row = row_of(num_inference_steps=4)  # eta is 0: that pipeline draws the noise of others from no seed
    pipeline = LDMSuperResolutionPipeline.from_pretrained(paper_folder)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        Image.fromarray(row["pixels"]), num_inference_steps=4, generator=torch.Generator().manual_seed(5)
    ).images[0]  # pyright: ignore[reportAttributeAccessIssue]
    [result] = enlarged(load_stack(paper_folder), row)
    assert levels_apart(result.pixels, expected) <= 1
    assert (result.parameters.noise_level, result.parameters.guidance_scale) == (None, 1.0)


def test_any_size_comes_back_four_times_as_large_and_depends_on_the_row_alone(stack: Stack) -> None:
    sizes = [(1, 1), (5, 3), (16, 17), (37, 41), (9, 50)]
    rows = [row_of(*size, guidance_scale=1.0) for size in sizes]
    together = enlarged(stack, *rows, tile=16, overlap=4)
    assert [result.pixels.shape for result in together] == [(4 * height, 4 * width, 3) for height, width in sizes]
    [alone] = enlarged(stack, rows[3], tile=16, overlap=4)
    assert (alone.pixels == together[3].pixels).all()
    reported = [
        getattr(together[3].parameters, name)
        for name in ("tile_size", "tile_overlap", "upscale_factor", "width", "height")
    ]
    assert reported == [16, 4, 4, 164, 148]
    [half] = enlarged(stack, rows[1], scale=2)
    assert half.pixels.shape == (10, 6, 3)


def test_eight_times_is_four_times_the_source_enlarged_twice(stack: Stack) -> None:
    row = row_of(9, 7, 4, guidance_scale=1.0)
    [result] = enlarged(stack, row, scale=8)
    assert result.pixels.shape == (72, 56, 4)
    assert (result.parameters.upscale_factor, result.parameters.width, result.parameters.height) == (8, 56, 72)
    twice = resize(visible_colors(row["pixels"]), 14, 18, "bicubic")
    [four] = enlarged(stack, {**row, "pixels": twice})
    assert (four.pixels == result.pixels[..., :3]).all()


def test_a_picture_of_one_tile_is_the_same_whatever_the_overlap(stack: Stack) -> None:
    [one], [other] = (enlarged(stack, row_of(), tile=UPSCALER_SIDE, overlap=overlap) for overlap in (0, 16))
    assert (one.pixels == other.pixels).all()


def test_decoding_in_tiles_joins_to_the_whole_with_the_memory_of_a_tile() -> None:
    largest = 0

    def nearest(latents: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, latents[0, 0].numel())
        return F.interpolate(latents[:, :3], scale_factor=4)

    latents = torch.randn(3, 45, 70, generator=torch.Generator().manual_seed(0)) / 2
    tiled = decode_tiled(nearest, latents, Tiling.of(45, 70, 16, 5))
    assert largest == 16 * 16
    whole = decode_tiled(nearest, latents, Tiling.of(45, 70, 100, 5))
    assert np.abs(tiled.astype(int) - whole).max() <= 1
    assert (tiled != whole).mean() < 0.01


def test_a_wide_picture_is_decoded_with_the_memory_of_a_column_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def nearest(latents: Tensor) -> Tensor:
        return F.interpolate(latents[:, :3], scale_factor=4)

    latents = torch.randn(3, 20, 90, generator=torch.Generator().manual_seed(0)) / 2
    expected = decode_tiled(nearest, latents, tiling := Tiling.of(20, 90, 16, 5))
    sizes: list[int] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size: sizes.append(int(np.prod(size))) or zeros(*size))
    monkeypatch.setattr("pipeline.tasks.decode.MAX_BAND_WIDTH", 80)
    by_columns = decode_tiled(nearest, latents, tiling)
    assert np.abs(by_columns.astype(int) - expected).max() <= 1
    assert max(sizes) == 3 * (4 * 16) * (4 * 20)


def test_corrected_colors_average_to_the_source(stack: Stack) -> None:
    row = row_of(37, 41)
    [plain] = enlarged(stack, row)
    [result] = enlarged(stack, row, correct_colors=True)
    errors = [
        np.square(block_means(one.pixels, 37) - row["pixels"].astype(np.float32)).mean() for one in (plain, result)
    ]
    decibels = [10 * np.log10(255**2 / error) for error in errors]
    assert decibels[1] >= 35 > 30 > decibels[0]
    assert result.parameters.colors_corrected and not plain.parameters.colors_corrected
    advised = replace(stack, generation_config={"correct_colors": True})
    assert (enlarged(advised, row)[0].pixels == result.pixels).all()
    assert (enlarged(advised, row, correct_colors=False)[0].pixels == plain.pixels).all()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_gray_stays_gray_and_alpha_is_enlarged_beside_the_colors(stack: Stack, channels: int) -> None:
    row = row_of(24, 24, channels, guidance_scale=1.0)
    if channels in (2, 4):
        row["pixels"][..., -1] = 0
        row["pixels"][:, 12:, -1] = 255
    [result] = enlarged(stack, row)
    assert result.pixels.shape == (96, 96, channels)
    if channels in (2, 4):
        assert (result.pixels[:, :40, -1] == 0).all() and (result.pixels[:, 56:, -1] == 255).all()
        hidden = row["pixels"].copy()
        hidden[:, :12, :-1] = 0
        [other] = enlarged(stack, {**row, "pixels": hidden})
        assert (result.pixels == other.pixels).all()
        opaque = np.full_like(hidden, 255)
        opaque[..., :-1] = row["pixels"][..., :-1]
        [solid], [plain] = (
            enlarged(stack, {**row, "pixels": opaque}),
            enlarged(stack, row | {"pixels": opaque[..., :-1]}),
        )
        assert (solid.pixels[..., :-1] == plain.pixels).all()


def test_a_noise_level_that_the_checkpoint_does_not_know_fails_its_row_alone(stack: Stack) -> None:
    bad, good = outcomes(stack, row_of(8, 8, noise_level=351), row_of(8, 8, noise_level=350))
    assert isinstance(bad, ValueError) and "noise_level is 351; give 0 to 350" in str(bad)
    assert isinstance(good, RowResult)


def test_each_task_refuses_the_checkpoints_of_the_others(stack: Stack, paper_folder: Path, tmp_path: Path) -> None:
    inpainting = load_stack(tiny_checkpoint(tmp_path / "nine", "sd15-inpainting"))
    with pytest.raises(CheckpointError, match=r"made for inpainting \(its U-Net takes 9 channels\); generate needs"):
        Generate(inpainting, RowDefaults())
    with pytest.raises(CheckpointError, match="made for inpainting .* upscale needs"):
        Upscale(inpainting, RowDefaults())
    for upscaler in (stack, load_stack(paper_folder)):
        for task in (Generate, Inpaint):
            with pytest.raises(CheckpointError, match="made for upscaling"):
                task(upscaler, RowDefaults())
    with pytest.raises(CheckpointError, match="tile is 18 and overlap 4; give a multiple of 4"):
        Upscale(stack, RowDefaults(tile=18))
