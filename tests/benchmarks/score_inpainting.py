"""Scores an inpainting checkpoint on held-out scenes of one thing.

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


def hole(scene: Scene) -> NDArray[np.uint8]:
    """Return a mask (64, 64): a white box over the scene's thing, with a margin of a few pixels."""
    thing, mask = scene.things[0], np.zeros((64, 64), np.uint8)
    reach = 1.12 * thing.radius + 0.05
    left, top, right, bottom = (
        round(64 * min(max(edge, 0), 1))
        for edge in (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)
    )
    mask[top:bottom, left:right] = 255
    return mask


def row(scene: Scene, prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "pixels": np.asarray(draw(scene)), "mask": hole(scene)}


def other_thing(scene: Scene, random: Random) -> Scene:
    """Return the scene with its thing replaced by one of another shape and color, at the same position."""
    thing = scene.things[0]
    shape = random.choice([name for name in SHAPES if name != thing.shape])
    color = random.choice([name for name in COLORS if name not in (thing.color, *scene.background.colors)])
    return replace(scene, things=(replace(thing, shape=shape, color=color),))


def replaced(task: Inpaint, count: int) -> None:
    random, reader = Random(HELD_OUT), load_reader()
    scenes_before = held_out(1, count)
    wanted = [other_thing(scene, random) for scene in scenes_before]
    rows = [row(before, after.caption()) for before, after in zip(scenes_before, wanted, strict=True)]
    found = Counter[str]()
    for picture, scene in zip(generate_images(task, rows), wanted, strict=True):
        right = dict(read_attributes(reader, picture, scene))
        found.update(kind for kind in ("color", "shape") if right[kind])
        found["both"] += right["color"] and right["shape"]
    print(
        f"another thing, {count} scenes: "
        + "  ".join(f"{kind} {found[kind] / count:.0%}" for kind in ("color", "shape", "both"))
    )


def removed(task: Inpaint, count: int) -> None:
    for pattern in ("plain", "striped"):
        selected = [
            scene
            for scene in scenes(HELD_OUT, 0, 60 * count)
            if len(scene.things) == 1 and scene.background.pattern == pattern
        ][:count]
        errors: list[float] = []
        for scene, picture in zip(selected, generate_images(task, [row(scene, "") for scene in selected]), strict=True):
            empty = np.asarray(draw(replace(scene, things=())))
            inside = hole(scene) > 0
            errors.append(float(np.square(picture[inside].astype(float) - empty[inside]).mean()))
        mean, median = psnr(float(np.mean(errors))), psnr(float(np.median(errors)))
        print(f"nothing, {len(selected)} {pattern} scenes: {mean:.1f} dB PSNR in the hole, median {median:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "shapes-inpainting")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = Inpaint(load_stack(options.model), RowDefaults())
    replaced(task, options.count)
    removed(task, options.count)


if __name__ == "__main__":
    main()
