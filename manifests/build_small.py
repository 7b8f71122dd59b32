"""Build small.parquet, the example manifest of `latentmill upscale`.

The images are textures and drawn scenes, reduced to a quarter of their width and height.

.venv/bin/python manifests/build_small.py
"""

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from build_holes import encode_png

from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes
from pipeline.training.data.textures import texture

FULL_WIDTH = 256
SCALE = 4
TEXTURES, SCENES = 8, 4


def main() -> None:
    """Write the manifest; one image is gray, and one is not square."""
    pictures = [texture(Random(f"1003/{index}"), FULL_WIDTH) for index in range(TEXTURES)]
    pictures += [draw(scene, FULL_WIDTH) for scene in scenes(1_002, 0, SCENES)]
    pictures[5] = pictures[5].convert("L")
    pictures[2] = pictures[2].crop((0, 0, FULL_WIDTH, 3 * FULL_WIDTH // 4))
    images = [encode_png(picture.reduce(SCALE)) for picture in pictures]
    rows = [{"id": f"small-{index:02}", "image": image} for index, image in enumerate(images)]
    pq.write_table(pa.Table.from_pylist(rows), Path(__file__).parent / "small.parquet")


if __name__ == "__main__":
    main()
