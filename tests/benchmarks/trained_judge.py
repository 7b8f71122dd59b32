"""The judge that learned: a small network that reads drawn scenes, trained on the generator's pictures alone.

It is asked for one color at a time: is there a thing of it, of which shape and size, and where; and once for the
background. `python -m tests.benchmarks.trained_judge` trains it, ten minutes on two cores, and prints how it does on
held-out pictures; the weights are kept in work/judge.pt.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes, stack_pixels
from pipeline.training.data.scenes import COLORS, PATTERNS, POSITIONS, SHAPES, SIZES, Scene
from tests.benchmarks.judge import HELD_OUT

WEIGHTS = Path("work/judge.pt")
STEPS, SCENES_A_STEP, SEED = 2_000, 64, 7
NAMES, SIZE_NAMES = tuple(COLORS), tuple(SIZES)
PIXELS = torch.tensor(list(COLORS.values())) / 127.5 - 1
NEAR = 0.1
"""A part of the picture's width: how far a thing may be from where it should, and what is `inside` another."""


class Judge(nn.Module):
    """What a picture (B, 3, 64, 64) in [-1, 1] holds of a color each (B,), and its background."""

    def __init__(self) -> None:
        super().__init__()
        # Presence, shapes, sizes, and the center.
        self.thing = _reader(4, 1 + len(SHAPES) + len(SIZES) + 2)
        self.background = _reader(3, len(PATTERNS) + len(NAMES))

    def of_things(self, pixels: Tensor, colors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits that a thing of the color is there (B,), of shapes and of sizes; its center (B, 2) in 0 to 1."""
        distance = (pixels - PIXELS[colors][:, :, None, None]).square().mean(1, keepdim=True).sqrt()
        there, shapes, sizes, center = self.thing(torch.cat([pixels, distance], 1)).split(
            [1, len(SHAPES), len(SIZES), 2], 1
        )
        return there[:, 0], shapes, sizes, center.sigmoid()

    def of_backgrounds(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of patterns, and of each color."""
        patterns, colors = self.background(pixels).split([len(PATTERNS), len(NAMES)], 1)
        return patterns, colors


def _reader(channels: int, answers: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((channels, 32), (32, 48), (48, 64), (64, 96)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, answers))


def loss_of(judge: Judge, pixels: Tensor, wanted: Sequence[Scene], random: Random) -> Tensor:
    """For each scene, one thing's color is asked for, one of the background's, and one that is not there."""
    things = [random.choice(scene.things) for scene in wanted]
    absent = []
    for scene in wanted:
        there = {*scene.background.colors, *(thing.color for thing in scene.things)}
        absent.append(random.choice([name for name in NAMES if name not in there]))
    asked = [thing.color for thing in things] + [random.choice(scene.background.colors) for scene in wanted] + absent
    colors = torch.tensor([NAMES.index(name) for name in asked])
    there, shapes, sizes, centers = judge.of_things(pixels.repeat(3, 1, 1, 1), colors)
    count = len(wanted)
    is_there = torch.cat([torch.ones(count), torch.zeros(2 * count)])
    shape = torch.tensor([SHAPES.index(thing.shape) for thing in things])
    size = torch.tensor([SIZE_NAMES.index(thing.size) for thing in things])
    center = torch.tensor([[thing.x, thing.y] for thing in things])
    patterns, background_colors = judge.of_backgrounds(pixels)
    pattern = torch.tensor([PATTERNS.index(scene.background.pattern) for scene in wanted])
    said = torch.tensor([[float(name in scene.background.colors) for name in NAMES] for scene in wanted])
    return (
        F.binary_cross_entropy_with_logits(there, is_there)
        + F.cross_entropy(shapes[:count], shape)
        + F.cross_entropy(sizes[:count], size)
        + 10 * F.mse_loss(centers[:count], center)
        + F.cross_entropy(patterns, pattern)
        + 3 * F.binary_cross_entropy_with_logits(background_colors, said)
    )


def trained() -> Judge:
    """Of a fixed seed; learned once, then read from WEIGHTS."""
    torch.manual_seed(SEED)
    judge = Judge()
    if WEIGHTS.exists():
        judge.load_state_dict(torch.load(WEIGHTS, weights_only=True))
        return judge.eval()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for step in range(STEPS):
        wanted, random = scenes(SEED, step * SCENES_A_STEP, SCENES_A_STEP), Random(f"{SEED}/{step}")
        pixels = stack_pixels([draw(scene) for scene in wanted])
        pixels = pixels + random.uniform(0, 0.08) * torch.randn(pixels.shape)
        loss = loss_of(judge, pixels, wanted, random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"the judge learns: step {step + 1} of {STEPS}, loss {loss.item():.3f}", flush=True)
    WEIGHTS.parent.mkdir(exist_ok=True)
    torch.save(judge.state_dict(), WEIGHTS)
    return judge.eval()


@torch.inference_mode()
def judged(judge: Judge, picture: NDArray[np.uint8], scene: Scene) -> Iterator[tuple[str, bool]]:
    """What of a scene's caption is in the picture (64, 64, 3), attribute by attribute."""
    pixels = stack_pixels([Image.fromarray(picture)])
    patterns, colors = judge.of_backgrounds(pixels)
    pattern = PATTERNS[int(patterns.argmax())]
    said = scene.background.colors
    seen = {NAMES[index] for index in colors[0].topk(len(said)).indices.tolist()}
    yield "background", pattern == scene.background.pattern and seen == set(said)
    asked = torch.tensor([NAMES.index(thing.color) for thing in scene.things])
    there, shapes, sizes, centers = judge.of_things(pixels.expand(len(asked), -1, -1, -1), asked)
    for index, thing in enumerate(scene.things):
        found = bool(there[index] > 0)
        yield "color", found
        yield "shape", found and SHAPES[int(shapes[index].argmax())] == thing.shape
        if thing.says_size and scene.relation != "inside":
            yield "size", found and SIZE_NAMES[int(sizes[index].argmax())] == thing.size
    if scene.relation:
        yield "relation", bool((there > 0).all()) and stands(scene, centers)


def stands(scene: Scene, centers: Tensor) -> bool:
    """Whether things stand as the scene's relation, or its place, says."""
    first = centers[0].tolist()
    if scene.relation in POSITIONS:
        return max(abs(a - b) for a, b in zip(first, POSITIONS[scene.relation], strict=True)) < NEAR
    across, down = (b - a for a, b in zip(first, centers[1].tolist(), strict=True))
    return {
        "left of": across > NEAR,
        "right of": -across > NEAR,
        "above": down > NEAR,
        "below": -down > NEAR,
        "inside": max(abs(across), abs(down)) < NEAR,
    }[scene.relation]


def table(judge: Judge, name: str, seen: Sequence[NDArray[np.uint8]], wanted: Sequence[Scene]) -> None:
    """Print what part of all attributes is right, and of each kind."""
    verdicts = Counter(v for picture, scene in zip(seen, wanted, strict=True) for v in judged(judge, picture, scene))
    kinds = dict.fromkeys(kind for kind, _ in verdicts)
    rates = {kind: verdicts[kind, True] / (verdicts[kind, True] + verdicts[kind, False]) for kind in kinds}
    right = sum(verdicts[kind, True] for kind in kinds) / verdicts.total()
    print(f"{name:<34} {right:6.1%}   " + "  ".join(f"{kind} {rate:.0%}" for kind, rate in rates.items()), flush=True)


def held_out(things: int, count: int) -> list[Scene]:
    """Scenes of so many things that no recipe has drawn."""
    found: list[Scene] = []
    start = 0
    while len(found) < count:
        found += [scene for scene in scenes(HELD_OUT, start, 200) if len(scene.things) == things]
        start += 200
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="scenes of one, two and three things each")
    options = parser.parse_args()
    judge = trained()
    for things in (1, 2, 3):
        wanted = held_out(things, options.count)
        table(judge, f"{things} thing(s), the generator's own", [np.asarray(draw(scene)) for scene in wanted], wanted)


if __name__ == "__main__":
    main()
