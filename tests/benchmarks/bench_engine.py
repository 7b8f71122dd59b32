"""The lane engine against diffusers' own pipeline: same weights, sampler, steps, guidance and batch, in one process.

`python -m tests.benchmarks.bench_engine` prints images per second for both, their ratio, and the U-Net's share of the
time. Both run alternately, `--repeats` times, and the best time of each counts. Uniform: one batch of rows with equal
settings. Mixed: rows of 10 to 50 steps, where diffusers must run each group of equal settings separately. At the end
of a mixed run some lanes are empty, so it has several times as many rows as lanes.
"""

import argparse
import random
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from pipeline.config import RowDefaults
from pipeline.diffusion.engine import LaneEngine
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import EMBEDDED
from pipeline.tasks.generate import Generate
from pipeline.tasks.rows import Row as TaskRow
from pipeline.training.data.scenes import vocabulary
from pipeline.training.tokenizer import save_tokenizer, word_tokenizer

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds for all rows, and the part of them that the U-Net took."""

    seconds: float
    unet_seconds: float


def sd15_scaled_down(folder: Path) -> Path:
    """Write a random checkpoint with the architecture of SD 1.5, about 50 million U-Net parameters, 32x32 latents."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(80, 160, 320, 320),
        cross_attention_dim=768,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    autoencoder = AutoencoderKL(
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    tokenizer = word_tokenizer(vocabulary(), 77)
    save_tokenizer(tokenizer, folder / "tokenizer")
    config = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, num_hidden_layers=2, num_attention_heads=12)
    pipeline = StableDiffusionPipeline(
        autoencoder,
        CLIPTextModel(config),
        tokenizer,
        unet,
        DDIMScheduler(),
        None,
        None,
        None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def run_engine(task: Generate, rows: list[Row], lanes: int) -> Timing:
    stack = task.stack
    engine = LaneEngine(stack.denoise, lanes=lanes, device=stack.device, dtype=stack.dtype)
    started = time.perf_counter()
    prepared = [task.prepare(TaskRow(**row)) for row in rows]
    for key, latents in engine.run(task.request(index, row) for index, row in enumerate(prepared)):
        assert isinstance(key, int)
        assert isinstance(latents, torch.Tensor), latents
        task.decode(latents, prepared[key])
    return Timing(time.perf_counter() - started, engine.stats.network_seconds)


def run_diffusers(pipeline: StableDiffusionPipeline, rows: list[Row], batch: int) -> Timing:
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["num_inference_steps"], row["guidance_scale"]].append(row)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor

    def run() -> None:
        for (steps, guidance), group in groups.items():
            for start in range(0, len(group), batch):
                part = group[start : start + batch]
                pipeline(
                    [row["prompt"] for row in part],
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    generator=generators(part),
                    height=side,
                    width=side,
                    output_type="np",
                )

    return timed(pipeline, run)


def generators(rows: list[Row]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row["seed"]) for row in rows]


def timed(pipeline: Any, run: Callable[[], None]) -> Timing:
    """Return the time of `run`, and the part of it that the pipeline's U-Net takes."""
    unet_seconds = [0.0]
    forward = pipeline.unet.forward

    def timed_forward(*args: Any, **kwargs: Any) -> Any:
        call_started = time.perf_counter()
        output = forward(*args, **kwargs)
        unet_seconds[0] += time.perf_counter() - call_started
        return output

    pipeline.unet.forward = timed_forward
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    pipeline.unet.forward = forward
    return Timing(seconds, unet_seconds[0])


def uniform_rows(count: int, steps: int) -> list[Row]:
    return [
        {
            "prompt": f"a red circle {index}",
            "seed": index,
            "num_inference_steps": steps,
            "guidance_scale": 5.0,
            "sampler": "ddim",
        }
        for index in range(count)
    ]


def mixed_rows(count: int) -> list[Row]:
    generator = random.Random(0)
    rows = uniform_rows(count, 0)
    return [{**row, "num_inference_steps": generator.randint(10, 50)} for row in rows]


def compare_generation(name: str, folder: Path, rows: list[Row], batch: int, repeats: int) -> None:
    """Compare the engine with diffusers' text-to-image pipeline."""
    task = Generate(load_stack(folder), RowDefaults())
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    warmup_rows = uniform_rows(batch, 1)
    run_engine(task, warmup_rows, 2 * batch)
    run_diffusers(pipeline, warmup_rows, batch)
    ours = ("latentmill", lambda: run_engine(task, rows, 2 * batch))
    compare(name, ours, ("diffusers", lambda: run_diffusers(pipeline, rows, batch)), len(rows), repeats)


Runner = tuple[str, Callable[[], Timing]]
"""The name of a program, and the function that runs it once."""


def compare(name: str, ours: Runner, theirs: Runner, count: int, repeats: int, unit: str = "images/s") -> None:
    """Run both programs alternately; print the best rate of each over `count` units and the ratio of their times."""
    turns = [(ours[1](), theirs[1]()) for _ in range(repeats)]
    best = [min(timings, key=lambda timing: timing.seconds) for timings in zip(*turns, strict=True)]
    for (program, _), timing in zip((ours, theirs), best, strict=True):
        rate, share = count / timing.seconds, timing.unet_seconds / timing.seconds
        print(f"{name:<28} {program:<14} {rate:8.3f} {unit}   U-Net {share:4.0%} of the time")
    ratios = ", ".join(f"{their_timing.seconds / our_timing.seconds:.2f}" for our_timing, their_timing in turns)
    ratio = best[1].seconds / best[0].seconds
    print(f"{name:<28} ratio          {ratio:8.2f}            (turns: {ratios})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--mixed-batch", type=int, default=4, help="batch of the mixed manifests")
    parser.add_argument("--rows", type=int, default=24, help="rows of the mixed manifests; many more than the batch")
    parser.add_argument("--only", choices=("sd15", "shapes"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, float32, batch {options.batch}")
    with tempfile.TemporaryDirectory() as scratch:
        if options.only != "shapes":
            folder = sd15_scaled_down(Path(scratch) / "sd15")
            compare_generation(
                "SD 1.5 scaled down, uniform", folder, uniform_rows(options.batch, 4), options.batch, options.repeats
            )
            compare_generation("SD 1.5 scaled down, mixed", folder, mixed_rows(options.rows), options.mixed_batch, 1)
        if options.only != "sd15":
            rows = uniform_rows(options.batch * 4, 20)
            compare_generation("embedded model, uniform", EMBEDDED / "shapes", rows, options.batch, options.repeats)
            rows = mixed_rows(2 * options.rows)
            compare_generation("embedded model, mixed", EMBEDDED / "shapes", rows, options.mixed_batch, options.repeats)


if __name__ == "__main__":
    main()
