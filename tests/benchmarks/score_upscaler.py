"""How an upscaler does on held-out textures and scenes, 64 to 256 pixels, against bicubic."""

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.models.checkpoint import load_stack
from pipeline.tasks.upscale import Upscale
from pipeline.training.pictures import scenes
from pipeline.training.scenes import draw
from pipeline.training.textures import degraded, texture
from tests.benchmarks.judge import HELD_OUT, made, psnr

LARGE, SMALL = 256, 64


def averaged(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The picture at a quarter of its width, (64, 64, 3)."""
    return pixels.reshape(SMALL, 4, SMALL, 4, 3).mean((1, 3))


def score(name: str, task: Upscale, wanted: list[Image.Image], small: list[Image.Image]) -> None:
    rows = [{"pixels": np.asarray(picture)} for picture in small]
    ours, bicubic, back = [], [], []
    for target, source, enlarged in zip(wanted, small, made(task, rows), strict=True):
        truth, low = np.asarray(target).astype(float), np.asarray(source).astype(float)
        smooth = np.asarray(source.resize((LARGE, LARGE), Image.Resampling.BICUBIC)).astype(float)
        ours.append(psnr(float(np.square(enlarged - truth).mean())))
        bicubic.append(psnr(float(np.square(smooth - truth).mean())))
        back.append(psnr(float(np.square(averaged(enlarged) - low).mean())))
    print(
        f"{name:<36} {np.mean(ours):.1f} dB PSNR, bicubic {np.mean(bicubic):.1f}, "
        f"gain {np.mean(np.subtract(ours, bicubic)):+.1f}; "
        f"down-sampled against its input {np.mean(back):.1f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--num-inference-steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stack = load_stack(options.model)
    drawn = [draw(scene, LARGE) for scene in scenes(HELD_OUT, 0, options.count)]
    textures = [texture(Random(f"{HELD_OUT}/{index}"), LARGE) for index in range(options.count)]
    random = Random(HELD_OUT)
    for corrected in (False, True):
        task = Upscale(stack, RowDefaults(correct_colours=corrected, num_inference_steps=options.num_inference_steps))
        suffix = ", colours corrected" if corrected else ""
        score(f"scenes, averaged{suffix}", task, drawn, [picture.reduce(4) for picture in drawn])
        score(f"textures, averaged{suffix}", task, textures, [picture.reduce(4) for picture in textures])
        if not corrected:
            score("textures, all degradations", task, textures, [degraded(picture, 4, random) for picture in textures])


if __name__ == "__main__":
    main()
