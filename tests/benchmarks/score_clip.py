"""The accuracy of the embedded CLIP on held-out scenes: `python -m tests.benchmarks.score_clip`.

It must pick the caption of an image among those of 32 scenes, and among captions that differ in one word: for one
thing, the shape among 8, the color among 10 and the size among 2; for two things, the relation among 4.
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
from tests.benchmarks.attributes import HELD_OUT, caption_accuracy, with_attribute, with_relation

CANDIDATES = 32


def caption_retrieval(clip: Clip, drawn: Sequence[Scene]) -> float:
    """Return how often the right caption is picked among those of CANDIDATES scenes."""
    images = clip.embed_images(np.stack([clip.crop(np.asarray(draw(scene, clip.side))) for scene in drawn]))
    texts = torch.stack([clip.embed_text(scene.caption()) for scene in drawn])
    right = 0
    for start in range(0, len(drawn), CANDIDATES):
        part = slice(start, start + CANDIDATES)
        right += int(((images[part] @ texts[part].T).argmax(1) == torch.arange(len(drawn[part]))).sum())
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
    print(f"the caption among those of {CANDIDATES} scenes: {caption_retrieval(clip, drawn[:whole]):.1%} of {whole}")
    for name, selected, words, change in (
        ("one thing, its shape among 8", one, SHAPES, with_attribute("shape")),
        ("one thing, its color among 10", one, tuple(COLORS), with_attribute("color")),
        ("one thing, its size among 2", sized, tuple(SIZES), with_attribute("size")),
        ("two things, the first's shape among 8", pairs, SHAPES, with_attribute("shape")),
        ("two things, the second's shape among 8", pairs, SHAPES, with_attribute("shape", 1)),
        ("two things, their relation among 4", pairs, RELATIONS[:4], with_relation),
    ):
        part = selected[: options.count]
        images = [np.asarray(draw(scene, clip.side)) for scene in part]
        print(f"{name}: {caption_accuracy(clip, images, part, words, change):.1%} of {len(part)}", flush=True)


if __name__ == "__main__":
    main()
