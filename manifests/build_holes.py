"""Builds holes.parquet: drawn scenes, a mask over a thing of each, and what is to stand there; "" takes the thing away.

.venv/bin/python manifests/build_holes.py
"""

import io
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline.training.data.examples import scenes
from pipeline.training.data.scenes import COLORS, SHAPES, Scene, draw

WIDTH = 64
COUNT = 12


def main() -> None:
    random = Random(12)
    chosen = [scene for scene in scenes(1_001, 0, 80) if len(scene.things) == 1][:COUNT]
    rows = [row(index, scene, random) for index, scene in enumerate(chosen)]
    pq.write_table(pa.Table.from_pylist(rows), Path(__file__).parent / "holes.parquet")


def row(index: int, scene: Scene, random: Random) -> dict[str, object]:
    thing = scene.things[0]
    color = random.choice([name for name in COLORS if name not in (thing.color, *scene.background.colors)])
    other = replace(thing, shape=random.choice([name for name in SHAPES if name != thing.shape]), color=color)
    prompt = "" if index % 4 == 3 else replace(scene, things=(other,)).caption()
    return {"id": f"hole-{index:02}", "prompt": prompt, "image": png(draw(scene, WIDTH)), "mask": png(mask(scene))}


def mask(scene: Scene) -> Image.Image:
    thing, picture = scene.things[0], Image.new("L", (WIDTH, WIDTH))
    reach = 1.12 * thing.radius + 0.05
    box = [WIDTH * edge for edge in (thing.x - reach, thing.y - reach, thing.x + reach, thing.y + reach)]
    ImageDraw.Draw(picture).rectangle(box, fill=255)
    return picture


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
