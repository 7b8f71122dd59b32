"""The accuracy of the embedded CLIP on held-out scenes: `python -m tests.benchmarks.score_clip`.

It picks the caption of an image among those of 32 scenes, and among captions that differ in one word: for one thing,
the shape among 8, the color among 10 and the size among 2; for two things, the relation among 4.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.models.clip import Clip, load_clip
from pipeline.models.configs import EMBEDDED
from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes
from pipeline.training.data.scenes import COLORS, RELATIONS, SHAPES, SIZES, Scene
from tests.benchmarks.attributes import HELD_OUT, caption_accuracy, other_relation, other_thing

CANDIDATES = 32


def among_all(clip: Clip, drawn: Sequence[Scene]) -> float:
    """Return how often the right caption is picked among those of CANDIDATES scenes."""
    seen = clip.embed_images(np.stack([clip.crop(np.asarray(draw(scene, clip.side))) for scene in drawn]))
    texts = torch.stack([clip.embed_text(scene.caption()) for scene in drawn])
    right = 0
    for start in range(0, len(drawn), CANDIDATES):
        part = slice(start, start + CANDIDATES)
        right += int(((seen[part] @ texts[part].T).argmax(1) == torch.arange(len(drawn[part]))).sum())
    return right / len(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "shapes-clip")
    parser.add_argument("--count", type=int, default=200, help="scenes of each kind")
    options = parser.parse_args()
    clip = load_clip(options.model)
    drawn = scenes(HELD_OUT, 0, 20 * options.count)
    one = [scene for scene in drawn if len(scene.things) == 1]
    sized = [scene for scene in one if scene.things[0].says_size]
    pairs = [scene for scene in drawn if scene.relation in RELATIONS[:4]]
    whole = options.count // CANDIDATES * CANDIDATES
    print(f"the caption among those of {CANDIDATES} scenes: {among_all(clip, drawn[:whole]):.1%} of {whole}")
    for name, found, words, other in (
        ("one thing, its shape among 8", one, SHAPES, other_thing("shape")),
        ("one thing, its color among 10", one, tuple(COLORS), other_thing("color")),
        ("one thing, its size among 2", sized, tuple(SIZES), other_thing("size")),
        ("two things, the first's shape among 8", pairs, SHAPES, other_thing("shape")),
        ("two things, the second's shape among 8", pairs, SHAPES, other_thing("shape", 1)),
        ("two things, their relation among 4", pairs, RELATIONS[:4], other_relation),
    ):
        part = found[: options.count]
        pictures = [np.asarray(draw(scene, clip.side)) for scene in part]
        print(f"{name}: {caption_accuracy(clip, pictures, part, words, other):.1%} of {len(part)}", flush=True)


if __name__ == "__main__":
    main()
