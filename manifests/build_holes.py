"""Build holes.parquet, the example manifest of `latentmill inpaint`.

Each row is a drawn scene, a mask over one of its things, and a prompt for the replacement. With an empty prompt, the
thing is removed.

.venv/bin/python manifests/build_holes.py
"""

import io
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes
from pipeline.training.data.scenes import COLORS, SHAPES, Scene

WIDTH = 64
COUNT = 12


def main() -> None:
    """Write the manifest."""
    random = Random(12)
    single_things = [scene for scene in scenes(1_001, 0, 80) if len(scene.things) == 1][:COUNT]
    rows = [build_row(index, scene, random) for index, scene in enumerate(single_things)]
    pq.write_table(pa.Table.from_pylist(rows), Path(__file__).parent / "holes.parquet")


def build_row(index: int, scene: Scene, random: Random) -> dict[str, object]:
    """Return the row of a scene; every fourth row has an empty prompt."""
    thing = scene.things[0]
    color = random.choice([name for name in COLORS if name not in (thing.color, *scene.background.colors)])
    replacement = replace(thing, shape=random.choice([name for name in SHAPES if name != thing.shape]), color=color)
    prompt = "" if index % 4 == 3 else replace(scene, things=(replacement,)).caption()
    mask = draw_mask(scene)
    return {
        "id": f"hole-{index:02}",
        "prompt": prompt,
        "image": encode_png(draw(scene, WIDTH)),
        "mask": encode_png(mask),
    }


def draw_mask(scene: Scene) -> Image.Image:
    """Return a mask that is white in a rectangle around the scene's thing."""
    thing, picture = scene.things[0], Image.new("L", (WIDTH, WIDTH))
    reach = 1.12 * thing.radius + 0.05
    box = [WIDTH * edge for edge in (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)]
    ImageDraw.Draw(picture).rectangle(box, fill=255)
    return picture


def encode_png(picture: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
