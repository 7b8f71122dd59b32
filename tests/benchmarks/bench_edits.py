"""Inpainting and upscaling against diffusers' own pipelines, with the embedded weights, in one process.

`python -m tests.benchmarks.bench_edits` prints the images per second of both, which run alternately, and their ratio;
and tiles per second for an archive of mixed sizes: all images in shared lanes, against one image at a time.
"""

import argparse
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale import StableDiffusionUpscalePipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.diffusion.tiles import Tiling
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import EMBEDDED
from pipeline.tasks.inpaint import Inpaint
from pipeline.tasks.upscale import Upscale
from pipeline.training.data.drawing import draw
from pipeline.training.data.textures import texture
from tests.benchmarks.attributes import held_out
from tests.benchmarks.bench_engine import Row, Timing, compare, generators, run_engine, timed
from tests.benchmarks.score_inpainting import thing_mask

INPAINTING: Row = {"num_inference_steps": 20, "guidance_scale": 4.0}
UPSCALING: Row = {"num_inference_steps": 8, "guidance_scale": 1.0, "noise_level": 0}


def inpainting_rows(count: int) -> list[Row]:
    return [
        {
            "pixels": np.asarray(draw(scene)),
            "mask": thing_mask(scene),
            "prompt": scene.caption(),
            "seed": index,
            **INPAINTING,
        }
        for index, scene in enumerate(held_out(1, count))
    ]


def upscaling_rows(sizes: list[tuple[int, int]]) -> list[Row]:
    """Return rows of textures with these heights and widths."""
    drawn = [np.asarray(texture(random.Random(index), max(size))) for index, size in enumerate(sizes)]
    return [
        {"pixels": pixels[:height, :width].copy(), "seed": index, **UPSCALING}
        for index, (pixels, (height, width)) in enumerate(zip(drawn, sizes, strict=True))
    ]


def diffusers(pipeline: Any, rows: list[Row], batch: int, arguments: Callable[[list[Row]], Row]) -> Timing:
    """Run all rows through the pipeline, batch by batch."""

    def run() -> None:
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            pipeline(generator=generators(part), output_type="np", **arguments(part))

    return timed(pipeline, run)


def inpaint_arguments(rows: list[Row]) -> Row:
    return {
        "prompt": [row["prompt"] for row in rows],
        "image": [Image.fromarray(row["pixels"]) for row in rows],
        "mask_image": [Image.fromarray(row["mask"]) for row in rows],
        "height": 64,
        "width": 64,
        **INPAINTING,
    }


def upscale_arguments(rows: list[Row]) -> Row:
    return {"prompt": [""] * len(rows), "image": [Image.fromarray(row["pixels"]) for row in rows], **UPSCALING}


def one_at_a_time(task: Upscale, rows: list[Row], lanes: int) -> Timing:
    turns = [run_engine(task, [row], lanes) for row in rows]
    return Timing(sum(turn.seconds for turn in turns), sum(turn.unet_seconds for turn in turns))


def load_pipeline(pipeline_class: Any, name: str) -> Any:
    pipeline = pipeline_class.from_pretrained(EMBEDDED / name, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def compare_inpainting(count: int, batch: int, repeats: int) -> None:
    rows = inpainting_rows(count)
    task = Inpaint(load_stack(EMBEDDED / "shapes-inpainting"), RowDefaults(sampler="ddim"))
    pipeline = load_pipeline(StableDiffusionInpaintPipeline, "shapes-inpainting")
    run_engine(task, rows[:batch], 2 * batch)
    diffusers(pipeline, rows[:batch], batch, inpaint_arguments)
    compare(
        "inpaint, 64x64",
        ("latentmill", lambda: run_engine(task, rows, 2 * batch)),
        ("diffusers", lambda: diffusers(pipeline, rows, batch, inpaint_arguments)),
        len(rows),
        repeats,
    )


def compare_upscaling(task: Upscale, count: int, batch: int, repeats: int) -> None:
    rows = upscaling_rows([(64, 64)] * count)
    pipeline = load_pipeline(StableDiffusionUpscalePipeline, "upscaler")
    run_engine(task, rows[:batch], batch)
    diffusers(pipeline, rows[:batch], batch, upscale_arguments)
    compare(
        "upscale, 64x64 to 256x256",
        ("latentmill", lambda: run_engine(task, rows, batch)),
        ("diffusers", lambda: diffusers(pipeline, rows, batch, upscale_arguments)),
        len(rows),
        repeats,
    )


def compare_shared_lanes(task: Upscale, count: int, batch: int, repeats: int) -> None:
    """Compare all images of an archive in shared lanes with one image at a time."""
    sizes = random.Random(1)
    archive = upscaling_rows([(sizes.randint(40, 200), sizes.randint(40, 200)) for _ in range(count)])
    tilings = [Tiling.of(*row["pixels"].shape[:2], task.tile, task.overlap) for row in archive]
    compare(
        f"archive of {len(archive)} sizes",
        ("together", lambda: run_engine(task, archive, batch)),
        ("one at a time", lambda: one_at_a_time(task, archive, batch)),
        sum(tiling.count for tiling in tilings),
        repeats,
        unit="tiles/s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    sizes = (options.rows, options.batch, options.repeats)
    compare_inpainting(*sizes)
    upscale = Upscale(load_stack(EMBEDDED / "upscaler"), RowDefaults(sampler="ddim", correct_colors=False))
    compare_upscaling(upscale, *sizes)
    compare_shared_lanes(upscale, *sizes)


if __name__ == "__main__":
    main()
