"""The accuracy of an inpainting checkpoint on held-out scenes of one thing.

With a prompt for another thing, the scene reader checks its color and shape. With an empty prompt, the masked area is
compared with the scene drawn without the thing.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import RowDefaults
from pipeline.models.checkpoint.folder import load_stack
from pipeline.models.configs import EMBEDDED
from pipeline.tasks.inpaint import Inpaint
from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes
from pipeline.training.data.scenes import COLORS, SHAPES, Scene
from tests.benchmarks.attributes import HELD_OUT, generate_images, psnr
from tests.benchmarks.scene_reader import held_out, load_reader, read_attributes


def thing_mask(scene: Scene) -> NDArray[np.uint8]:
    """Return a mask (64, 64): a white box over the scene's thing, with a margin of a few pixels."""
    thing, mask = scene.things[0], np.zeros((64, 64), np.uint8)
    reach = 1.12 * thing.radius + 0.05
    left, top, right, bottom = (
        round(64 * min(max(edge, 0), 1))
        for edge in (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)
    )
    mask[top:bottom, left:right] = 255
    return mask


def inpainting_row(scene: Scene, prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "pixels": np.asarray(draw(scene)), "mask": thing_mask(scene)}


def with_other_thing(scene: Scene, random: Random) -> Scene:
    """Return the scene with its thing replaced by one of another shape and color, at the same position."""
    thing = scene.things[0]
    shape = random.choice([name for name in SHAPES if name != thing.shape])
    color = random.choice([name for name in COLORS if name not in (thing.color, *scene.background.colors)])
    return replace(scene, things=(replace(thing, shape=shape, color=color),))


def score_replacement(task: Inpaint, count: int) -> None:
    """Print how often the image has the color and the shape of the prompted thing."""
    random, reader = Random(HELD_OUT), load_reader()
    scenes_before = held_out(1, count)
    targets = [with_other_thing(scene, random) for scene in scenes_before]
    rows = [inpainting_row(before, after.caption()) for before, after in zip(scenes_before, targets, strict=True)]
    correct = Counter[str]()
    for image, scene in zip(generate_images(task, rows), targets, strict=True):
        attributes = dict(read_attributes(reader, image, scene))
        correct.update(kind for kind in ("color", "shape") if attributes[kind])
        correct["both"] += attributes["color"] and attributes["shape"]
    print(
        f"another thing, {count} scenes: "
        + "  ".join(f"{kind} {correct[kind] / count:.0%}" for kind in ("color", "shape", "both"))
    )


def score_removal(task: Inpaint, count: int) -> None:
    """Print the PSNR of the masked area after an empty prompt."""
    for pattern in ("plain", "striped"):
        selected = [
            scene
            for scene in scenes(HELD_OUT, 0, 60 * count)
            if len(scene.things) == 1 and scene.background.pattern == pattern
        ][:count]
        errors: list[float] = []
        for scene, image in zip(
            selected, generate_images(task, [inpainting_row(scene, "") for scene in selected]), strict=True
        ):
            target = np.asarray(draw(replace(scene, things=())))
            masked = thing_mask(scene) > 0
            errors.append(float(np.square(image[masked].astype(float) - target[masked]).mean()))
        mean, median = psnr(float(np.mean(errors))), psnr(float(np.median(errors)))
        print(f"nothing, {len(selected)} {pattern} scenes: {mean:.1f} dB PSNR in the mask, median {median:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "shapes-inpainting")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = Inpaint(load_stack(options.model), RowDefaults())
    score_replacement(task, options.count)
    score_removal(task, options.count)


if __name__ == "__main__":
    main()
