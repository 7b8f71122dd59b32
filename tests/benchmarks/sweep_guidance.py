"""The trade-off of the guidance scale between the accuracy of a caption's attributes and the diversity of images.

    python -m tests.benchmarks.sweep_guidance --plot pipeline/checkpoints/shapes/guidance.svg

Diversity is the mean distance between images of one caption and different seeds, in levels of 255.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import RowDefaults
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import EMBEDDED
from pipeline.tasks.generate import Generate
from pipeline.training.data.scenes import Scene
from tests.benchmarks.attributes import generate_images
from tests.benchmarks.scene_reader import held_out, load_reader, read_attributes

SCALES = (1.0, 3.0, 5.0, 7.0, 9.0, 13.0)
SEEDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "shapes")
    parser.add_argument("--count", type=int, default=24, help="captions of one and of two things each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = Generate(load_stack(options.model), RowDefaults())
    scenes = held_out(1, options.count) + held_out(2, options.count)
    results = [(scale, *measure(task, scenes, scale)) for scale in SCALES]
    print("guidance  attributes right  diversity")
    for scale, right, diversity in results:
        print(f"{scale:8g}  {right:16.1%}  {diversity:9.1f}")
    if options.plot:
        options.plot.write_text(plot(results))


def measure(task: Generate, scenes: list[Scene], scale: float) -> tuple[float, float]:
    """Return the fraction of correct attributes, and the diversity."""
    rows = [
        {"prompt": scene.caption(), "seed": seed, "guidance_scale": scale} for scene in scenes for seed in range(SEEDS)
    ]
    images, reader = generate_images(task, rows), load_reader()
    correct = [
        right
        for index, scene in enumerate(scenes)
        for image in images[SEEDS * index : SEEDS * (index + 1)]
        for _, right in read_attributes(reader, image, scene)
    ]
    distances = [
        distance(*pair)
        for index in range(len(scenes))
        for pair in combinations(images[SEEDS * index : SEEDS * (index + 1)], 2)
    ]
    return float(np.mean(correct)), float(np.mean(distances))


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.sqrt(np.square(one.astype(float) - other).mean()))


def plot(results: list[tuple[float, float, float]]) -> str:
    """Return both curves over the guidance scale, as SVG."""
    max_diversity = max(diversity for _, _, diversity in results)
    right = curve([(scale, part) for scale, part, _ in results], "#2a6fdb")
    diverse = curve([(scale, diversity / max_diversity) for scale, _, diversity in results], "#d9822b")
    ticks = "".join(f'<text x="{x_of(scale)}" y="268" text-anchor="middle">{scale:g}</text>' for scale in SCALES)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-family="sans-serif" font-size="12">
<rect width="640" height="300" fill="#fff"/><path d="M50 50V250H590" fill="none" stroke="#888"/>
{ticks}{right}{diverse}
<text x="320" y="290" text-anchor="middle">guidance scale</text>
<text x="50" y="20" fill="#2a6fdb">attributes right, 0 to 100 %</text>
<text x="270" y="20" fill="#d9822b">diversity, 0 to {max_diversity:.0f} levels of 255</text></svg>
"""


def curve(points: list[tuple[float, float]], color: str) -> str:
    """Return a line through points (scale, value), values in 0 to 1."""
    points_text = " ".join(f"{x_of(scale)},{250 - 200 * value:.1f}" for scale, value in points)
    return f'<polyline fill="none" stroke="{color}" stroke-width="2.5" points="{points_text}"/>'


def x_of(scale: float) -> float:
    return round(50 + 540 * scale / max(SCALES), 1)


if __name__ == "__main__":
    main()
