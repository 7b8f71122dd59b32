"""Rows with different LoRAs: the lane engine against diffusers, which switches adapters group by group, and the cost.

`python -m tests.benchmarks.bench_lora` runs the same rows, each with one of `--adapters` LoRAs at random, in three
ways: through the engine, through the engine without LoRAs, and through diffusers' pipeline, which runs the rows of each
LoRA after another. The ways take turns (A B C C B A); it prints the median and the quartiles of the seconds of each,
and two ratios: of diffusers to the engine, and of the engine with LoRAs to the engine without.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from pipeline.adapters import NamedPath
from pipeline.config import RowDefaults, RunConfig
from pipeline.inference.loaded_model import add_loras
from pipeline.models.checkpoint.folder import load_stack
from pipeline.tasks.generate import Generate
from tests.benchmarks.bench_engine import generators, run_engine, sd15_scaled_down
from tests.lora_checkpoints import USUAL, random_factors, save_kohya

Row = dict[str, Any]


def save_loras(folder: Path, checkpoint: Path, count: int, rank: int) -> dict[str, Path]:
    """Write LoRAs of one rank for all attention and feed-forward layers of the U-Net; return them by name."""
    stack = load_stack(checkpoint)
    loras: dict[str, Path] = {}
    for index in range(count):
        factors = random_factors(stack, seed=index, endings=USUAL, networks=["unet"], size=0.02, ranks=(rank,))
        loras[f"lora{index}"] = save_kohya(folder / f"lora{index}.safetensors", stack, factors)
    return loras


def random_rows(count: int, loras: dict[str, Path], steps: int) -> list[Row]:
    chance = random.Random(3)
    settings = {"prompt": "a large red circle", "num_inference_steps": steps, "guidance_scale": 5.0, "sampler": "ddim"}
    return [settings | {"seed": index, "loras": chance.choice(list(loras))} for index in range(count)]


def run_diffusers(pipeline: StableDiffusionPipeline, rows: list[Row], batch: int) -> float:
    """Return the seconds for all rows, those of one LoRA after those of another, in batches of their own."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["loras"]].append(row)
    started = time.perf_counter()
    for name, group in groups.items():
        pipeline.set_adapters([name], [1.0])
        for start in range(0, len(group), batch):
            part = group[start : start + batch]
            pipeline(
                [row["prompt"] for row in part],
                num_inference_steps=part[0]["num_inference_steps"],
                guidance_scale=part[0]["guidance_scale"],
                generator=generators(part),
                output_type="np",
            )
    return time.perf_counter() - started


def load_diffusers(checkpoint: Path, loras: dict[str, Path]) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for name, path in loras.items():
        pipeline.load_lora_weights(str(path), adapter_name=name)
    return pipeline


def ways(checkpoint: Path, loras: dict[str, Path], options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Return the functions that run the rows in each way and return the seconds."""
    rows = random_rows(options.rows, loras, options.steps)
    named = tuple(NamedPath(name, str(path)) for name, path in loras.items())
    with_loras = Generate(add_loras(RunConfig(task="generate", loras=named), load_stack(checkpoint)), RowDefaults())
    without = Generate(load_stack(checkpoint), RowDefaults())
    plain = [row | {"loras": None} for row in rows]
    pipeline = load_diffusers(checkpoint, loras)
    return {
        "engine": lambda: run_engine(with_loras, rows, options.lanes).seconds,
        "engine without LoRAs": lambda: run_engine(without, plain, options.lanes).seconds,
        "diffusers": lambda: run_diffusers(pipeline, rows, options.lanes // 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lanes", type=int, default=8, help="a row takes two, and diffusers' batch is half of them")
    parser.add_argument("--repeats", type=int, default=4, help="measurements of each way")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = sd15_scaled_down(Path(folder) / "checkpoint")
        run = ways(checkpoint, save_loras(Path(folder), checkpoint, options.adapters, options.rank), options)
        seconds: dict[str, list[float]] = {name: [] for name in run}
        for turn in range(options.repeats):
            for name in run if turn % 2 == 0 else reversed(run):
                seconds[name].append(run[name]())
    print_report(seconds)


def print_report(seconds: dict[str, list[float]]) -> None:
    for name, values in seconds.items():
        first, median, third = quartiles(values)
        print(f"{name:22} {median:8.2f} s  (quartiles {first:.2f} to {third:.2f}, {len(values)} runs)")
    for one, other in itertools.pairwise(("diffusers", "engine", "engine without LoRAs")):
        ratios = [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]
        first, median, third = quartiles(ratios)
        print(f"{one} / {other}: {median:.3f}  (quartiles {first:.3f} to {third:.3f})")


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


if __name__ == "__main__":
    main()
