"""How often the embedded model's pictures hold what their captions say: `make bench-model`.

The judge is no network: it gives each pixel the nearest colour of the palette, takes the background from the border,
each thing from the pixels of its colour, and its shape from the outline that covers them best. Its own errors stand
first, on pictures that the generator drew. The captions are held out: their scenes come from a seed of their own.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import RowDefaults
from pipeline.diffusion.engine import LaneEngine
from pipeline.models.checkpoint import EMBEDDED, load_stack
from pipeline.tasks.generate import Generate
from pipeline.training.pictures import pixels_of, scenes
from pipeline.training.scenes import COLOURS, SHAPES, Background, Scene, Thing, draw

HELD_OUT = 1_000
NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
Verdicts = Counter[tuple[str, bool]]


def nearest_colours(picture: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The palette's index for each pixel, (H, W)."""
    distances = np.square(picture[:, :, None].astype(np.float32) - PALETTE).sum(-1)
    return distances.argmin(-1)


@cache
def outline(shape: str) -> NDArray[np.bool_]:
    """A shape's own pixels, cropped to it, at a size from which any is made."""
    scene = Scene((Thing(shape, "black", "large", 0.5, 0.5, 0.35),), Background("plain", ("white",)))
    return cropped(np.asarray(draw(scene, 128).convert("L")) < 128)


def cropped(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def shape_of(mask: NDArray[np.bool_]) -> str:
    """The shape whose outline, stretched to the mask's box, overlaps the mask best."""
    seen = cropped(mask)
    height, width = seen.shape

    def overlap(shape: str) -> float:
        stretched = np.asarray(Image.fromarray(outline(shape)).resize((width, height))) > 0
        return float((stretched & seen).sum() / (stretched | seen).sum())

    return max(SHAPES, key=overlap)


def judge(picture: NDArray[np.uint8], scene: Scene) -> Iterator[tuple[str, bool]]:
    """What of a caption with a plain background is in the picture, attribute by attribute."""
    colours = nearest_colours(picture)
    border = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])
    yield "background", NAMES[np.bincount(border).argmax()] == scene.background.colours[0]
    inner = colours[1:-1, 1:-1]
    others = Counter(inner[inner != NAMES.index(scene.background.colours[0])].tolist())
    found = {NAMES[index] for index, _ in others.most_common(len(scene.things))}
    centres = []
    for thing in scene.things:
        mask = colours == NAMES.index(thing.colour)
        there = thing.colour in found and mask.sum() >= 12
        yield "colour", there
        yield "shape", there and shape_of(mask) == thing.shape
        centres.append(np.argwhere(mask).mean(0) if there else None)
    if scene.relation in ("left of", "right of", "above", "below"):
        axis, sign = (
            (1 if scene.relation in ("left of", "right of") else 0),
            (1 if scene.relation in ("left of", "above") else -1),
        )
        first, second = centres
        yield "relation", first is not None and second is not None and sign * (second[axis] - first[axis]) > 4


def held_out(things: int, count: int) -> list[Scene]:
    """Scenes of so many things, on plain backgrounds, not one inside another."""
    found: list[Scene] = []
    start = 0
    while len(found) < count:
        batch = scenes(HELD_OUT, start, 200)
        start += 200
        found += [
            s for s in batch if len(s.things) == things and s.background.pattern == "plain" and s.relation != "inside"
        ]
    return found[:count]


def pictures(task: Generate, captions: list[str], lanes: int, **settings: Any) -> list[NDArray[np.uint8]]:
    engine = LaneEngine(task.stack.denoise, lanes=lanes, device=task.stack.device, dtype=task.stack.dtype)
    rows = [{"prompt": caption, "seed": index, **settings} for index, caption in enumerate(captions)]
    made: dict[int, NDArray[np.uint8]] = {}
    for key, latents in engine.run(task.request(index, row) for index, row in enumerate(rows)):
        assert isinstance(key, int)
        assert isinstance(latents, torch.Tensor)
        made[key] = task.pixels(latents, rows[key])
    return [made[index] for index in range(len(rows))]


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


def reconstruction(task: Generate, count: int) -> float:
    """PSNR in dB of held-out pictures that the autoencoder encoded (mean) and decoded, as 8-bit pictures."""
    wanted = pixels_of(scenes(HELD_OUT, 0, count), task.stack.native_size[0])
    with torch.inference_mode():
        rebuilt = torch.cat([task.stack.decode(task.stack.autoencoder.encode(part)) for part in wanted.split(16)])
    levels = lambda pixels: ((pixels / 2 + 0.5).clamp(0, 1) * 255).round()  # noqa: E731
    return 10 * float(torch.log10(255**2 / (levels(wanted) - levels(rebuilt)).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=EMBEDDED / "shapes")
    parser.add_argument("--count", type=int, default=100, help="captions of each kind")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = Generate(load_stack(options.model), RowDefaults())
    print(f"autoencoder, 256 held-out pictures: {reconstruction(task, 256):.1f} dB PSNR")
    print(f"attributes right, {options.count} held-out captions each")
    for things in (1, 2):
        wanted = held_out(things, options.count)
        captions = [scene.caption() for scene in wanted]
        table(f"{things} thing(s), the generator's own", [np.asarray(draw(scene)) for scene in wanted], wanted)
        table(f"{things} thing(s), model", pictures(task, captions, 16), wanted)
        table(f"{things} thing(s), model, guidance 1", pictures(task, captions, 16, guidance_scale=1.0), wanted)


if __name__ == "__main__":
    main()
