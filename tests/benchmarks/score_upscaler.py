"""The PSNR of an upscaler and of bicubic enlarging on held-out textures and scenes, from 64 to 256 pixels.

It also prints the perceptual distance in the features of the embedded CLIP's image encoder.
"""

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.diffusion.tiles import Tiling
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import EMBEDDED
from pipeline.models.stack import Stack
from pipeline.tasks.upscale import Upscale
from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes, stack_pixels
from pipeline.training.data.textures import degrade, texture
from pipeline.training.image_features import ImageFeatures, load_image_features
from pipeline.training.losses import perceptual_distance
from tests.benchmarks.attributes import HELD_OUT, generate_images, psnr

LARGE, SMALL = 256, 64


def averaged(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the image reduced to a quarter of its width by averaging, (64, 64, 3)."""
    return pixels.reshape(SMALL, 4, SMALL, 4, 3).mean((1, 3))


def mean_perceptual_distance(features: ImageFeatures, image: NDArray[np.uint8], target: NDArray[np.uint8]) -> float:
    """Return the mean perceptual distance over crops of the embedded CLIP's image size."""
    crops = [
        stack_pixels([Image.fromarray(pixels[top : top + SMALL, left : left + SMALL])])
        for pixels in (image, target)
        for top in range(0, LARGE, SMALL)
        for left in range(0, LARGE, SMALL)
    ]
    ours, theirs = torch.cat(crops).chunk(2)
    with torch.inference_mode():
        return float(perceptual_distance(features(ours), features(theirs)).mean())


def score(name: str, task: Upscale, targets: list[Image.Image], small: list[Image.Image]) -> None:
    rows = [{"pixels": np.asarray(image)} for image in small]
    ours, bicubic, downsampled, distances, bicubic_distances = [], [], [], [], []
    features = load_image_features(EMBEDDED / "shapes-clip")
    for target, source, enlarged in zip(targets, small, generate_images(task, rows), strict=True):
        target_values, low = np.asarray(target).astype(float), np.asarray(source).astype(float)
        bicubic_image = np.asarray(source.resize((LARGE, LARGE), Image.Resampling.BICUBIC))
        ours.append(psnr(float(np.square(enlarged - target_values).mean())))
        bicubic.append(psnr(float(np.square(bicubic_image - target_values).mean())))
        distances.append(mean_perceptual_distance(features, enlarged, np.asarray(target)))
        bicubic_distances.append(mean_perceptual_distance(features, bicubic_image, np.asarray(target)))
        downsampled.append(psnr(float(np.square(averaged(enlarged) - low).mean())))
    print(
        f"{name:<36} {np.mean(ours):.1f} dB PSNR, bicubic {np.mean(bicubic):.1f}, "
        f"gain {np.mean(np.subtract(ours, bicubic)):+.1f}; "
        f"down-sampled against its input {np.mean(downsampled):.1f}; "
        f"perceptual distance {np.mean(distances):.4f}, bicubic {np.mean(bicubic_distances):.4f}",
        flush=True,
    )


def seams(stack: Stack, name: str, target: Image.Image, tile: int) -> None:
    """Print the jumps of the error at tile borders and elsewhere, and how tiled and untiled output differ."""
    small = target.reduce(4)
    rows = [{"pixels": np.asarray(small)}]
    [whole] = generate_images(Upscale(stack, RowDefaults(tile=small.width, overlap=0)), rows)
    [tiled] = generate_images(Upscale(stack, RowDefaults(tile=tile)), rows)
    tiling = Tiling.of(small.height, small.width, tile, tile // 4)
    borders = sorted({4 * edge for left in tiling.lefts for edge in (left, left + tile)} - {0, 4 * small.width})
    errors = tiled.astype(float) - np.asarray(target)
    jumps = np.abs(np.diff(errors, axis=1)).mean((0, 2))
    at, other = jumps[[border - 1 for border in borders]].mean(), np.delete(jumps, [b - 1 for b in borders]).mean()
    print(
        f"{name}, {tiling.count} tiles of {tile}: the error jumps by {at:.2f} levels at {len(borders)} borders, "
        f"{other:.2f} elsewhere; one tile and many differ by {np.abs(whole.astype(float) - tiled).mean():.2f} levels",
        flush=True,
    )


def ramp(width: int) -> Image.Image:
    gray = Image.linear_gradient("L").resize((width, width))
    return Image.merge("RGB", [gray.rotate(angle) for angle in (0, 90, 180)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "upscaler")
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
        task = Upscale(stack, RowDefaults(correct_colors=corrected, num_inference_steps=options.num_inference_steps))
        suffix = ", colors corrected" if corrected else ""
        score(f"scenes, averaged{suffix}", task, drawn, [image.reduce(4) for image in drawn])
        score(f"textures, averaged{suffix}", task, textures, [image.reduce(4) for image in textures])
        if not corrected:
            score("textures, all degradations", task, textures, [degrade(image, 4, random) for image in textures])
    large = 2 * LARGE
    images = {"ramp": ramp(large), "scene": draw(scenes(HELD_OUT, 0, 1)[0], large)}
    images["texture"] = texture(Random(f"{HELD_OUT}/seams"), large)
    for name, image in images.items():
        for tile in (32, 64):
            seams(stack, f"{name} to {large}x{large}", image, tile)


if __name__ == "__main__":
    main()
