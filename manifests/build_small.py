"""Builds small.parquet: drawn textures and scenes at a quarter of their width, for `latentmill upscale`.

.venv/bin/python manifests/build_small.py
"""

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from build_holes import png

from pipeline.training.data.examples import scenes
from pipeline.training.data.scenes import draw
from pipeline.training.data.textures import texture

LARGE = 256
TEXTURES, SCENES = 8, 4


def main() -> None:
    pictures = [texture(Random(f"1003/{index}"), LARGE) for index in range(TEXTURES)]
    pictures += [draw(scene, LARGE) for scene in scenes(1_002, 0, SCENES)]
    pictures[5] = pictures[5].convert("L")
    pictures[2] = pictures[2].crop((0, 0, LARGE, 3 * LARGE // 4))
    rows = [{"id": f"small-{index:02}", "image": png(picture.reduce(4))} for index, picture in enumerate(pictures)]
    pq.write_table(pa.Table.from_pylist(rows), Path(__file__).parent / "small.parquet")


if __name__ == "__main__":
    main()
