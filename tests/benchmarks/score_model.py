"""How often the embedded model's pictures hold what their captions say: `make bench-model`.

The judge's own errors stand first, on pictures that the generator drew. The captions are held out: their scenes come
from a seed of their own.
"""

import argparse
from collections import Counter
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config import RowDefaults
from pipeline.models.checkpoint import EMBEDDED, load_stack
from pipeline.models.clip import Clip, load_clip
from pipeline.tasks.generate import Generate
from pipeline.training.pictures import SCENES, pixels_of
from pipeline.training.scenes import COLOURS, RELATIONS, SHAPES, Scene, draw
from tests.benchmarks.judge import (
    HELD_OUT,
    Verdicts,
    held_out,
    judge,
    made,
    one_word,
    other_relation,
    other_thing,
    psnr,
)


def table(name: str, seen: list[NDArray[np.uint8]], wanted: list[Scene]) -> None:
    verdicts: Verdicts = Counter(v for picture, scene in zip(seen, wanted, strict=True) for v in judge(picture, scene))
    kinds = ("background", "colour", "shape", "relation")
    rates = {
        kind: verdicts[kind, True] / total for kind in kinds if (total := verdicts[kind, True] + verdicts[kind, False])
    }
    right, total = sum(verdicts[kind, True] for kind in kinds), sum(verdicts.values())
    print(
        f"{name:<34} {right / total:6.1%}   " + "  ".join(f"{kind} {rate:.0%}" for kind, rate in rates.items()),
        flush=True,
    )


def by_clip(clip: Clip, name: str, seen: list[NDArray[np.uint8]], wanted: list[Scene]) -> None:
    """What a CLIP that learned from the generator's pictures finds: the right word among all of its kind."""
    things = range(len(wanted[0].things))
    rates = {
        attribute: fmean(one_word(clip, seen, wanted, words, other_thing(attribute, place)) for place in things)
        for attribute, words in (("colour", tuple(COLOURS)), ("shape", SHAPES))
    }
    related = [index for index, scene in enumerate(wanted) if scene.relation in RELATIONS[:4]]
    if len(things) == 2:
        pictures, scenes = [seen[index] for index in related], [wanted[index] for index in related]
        rates["relation"] = one_word(clip, pictures, scenes, RELATIONS[:4], other_relation)
    print(f"{name:<34} {'':>6}   " + "  ".join(f"{kind} {rate:.0%}" for kind, rate in rates.items()), flush=True)


def reconstruction(task: Generate, count: int) -> float:
    """PSNR in dB of held-out pictures that the autoencoder encoded (mean) and decoded, as 8-bit pictures."""
    wanted = pixels_of(SCENES.examples(HELD_OUT, 0, count, task.stack.native_size[0]))
    with torch.inference_mode():
        rebuilt = torch.cat([task.stack.decode(task.stack.autoencoder.encode(part)) for part in wanted.split(16)])
    levels = lambda pixels: ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()  # noqa: E731
    return psnr(float((levels(wanted) - levels(rebuilt)).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "shapes")
    parser.add_argument("--count", type=int, default=100, help="captions of each kind")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = Generate(load_stack(options.model), RowDefaults())
    clip = load_clip(EMBEDDED / "shapes-clip")
    print(f"autoencoder, 256 held-out pictures: {reconstruction(task, 256):.1f} dB PSNR")
    print(f"attributes right, {options.count} held-out captions each")
    for things in (1, 2):
        wanted = held_out(things, options.count)
        rows = [{"prompt": scene.caption()} for scene in wanted]
        drawn, pictures = [np.asarray(draw(scene)) for scene in wanted], made(task, rows)
        table(f"{things} thing(s), the generator's own", drawn, wanted)
        by_clip(clip, "  by a CLIP", drawn, wanted)
        table(f"{things} thing(s), model", pictures, wanted)
        by_clip(clip, "  by a CLIP", pictures, wanted)
        table(
            f"{things} thing(s), model, guidance 1", made(task, [row | {"guidance_scale": 1.0} for row in rows]), wanted
        )


if __name__ == "__main__":
    main()
