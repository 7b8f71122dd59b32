"""A small network that reads the attributes of scenes from images, trained on drawn scenes only.

For each color it predicts whether there is a thing of that color, its shape, size and center; and for each image the
background. `python -m tests.benchmarks.scene_reader` trains it (ten minutes on two cores) and prints its accuracy on
held-out drawn scenes; the weights are stored in work/scene_reader.pt.
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
from tests.benchmarks.attributes import HELD_OUT

WEIGHTS = Path("work/scene_reader.pt")
STEPS, SCENES_PER_STEP, SEED = 2_000, 64, 7
NAMES, SIZE_NAMES = tuple(COLORS), tuple(SIZES)
PIXELS = torch.tensor(list(COLORS.values())) / 127.5 - 1
NEAR = 0.1
"""The tolerance for positions and for the relation `inside`, in image widths."""


class SceneReader(nn.Module):
    """Reads the thing of a given color, and the background, from pixels (B, 3, 64, 64) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.thing = _network(4, 1 + len(SHAPES) + len(SIZES) + 2)  # presence, shapes, sizes, center
        self.background = _network(3, len(PATTERNS) + len(NAMES))

    def read_things(self, pixels: Tensor, colors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits for the presence of a thing of the color (B,), for shapes and for sizes, and centers (B, 2)."""
        distance = (pixels - PIXELS[colors][:, :, None, None]).square().mean(1, keepdim=True).sqrt()
        outputs = self.thing(torch.cat([pixels, distance], 1))
        present, shapes, sizes, center = outputs.split([1, len(SHAPES), len(SIZES), 2], 1)
        return present[:, 0], shapes, sizes, center.sigmoid()

    def read_backgrounds(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits for patterns and for each color."""
        patterns, colors = self.background(pixels).split([len(PATTERNS), len(NAMES)], 1)
        return patterns, colors


def _network(channels: int, out_features: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for in_channels, out_channels in ((channels, 32), (32, 48), (48, 64), (64, 96)):
        layers += [
            nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
            nn.GroupNorm(8, out_channels),
            nn.SiLU(),
        ]
        layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1), nn.GroupNorm(8, out_channels), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, out_features))


def loss_of(reader: SceneReader, pixels: Tensor, targets: Sequence[Scene], random: Random) -> Tensor:
    """Return the loss for three colors per scene: of a thing, of the background, and one that is absent."""
    things = [random.choice(scene.things) for scene in targets]
    absent = []
    for scene in targets:
        present = {*scene.background.colors, *(thing.color for thing in scene.things)}
        absent.append(random.choice([name for name in NAMES if name not in present]))
    color_names = (
        [thing.color for thing in things] + [random.choice(scene.background.colors) for scene in targets] + absent
    )
    colors = torch.tensor([NAMES.index(name) for name in color_names])
    presence, shapes, sizes, centers = reader.read_things(pixels.repeat(3, 1, 1, 1), colors)
    count = len(targets)
    is_present = torch.cat([torch.ones(count), torch.zeros(2 * count)])
    shape = torch.tensor([SHAPES.index(thing.shape) for thing in things])
    size = torch.tensor([SIZE_NAMES.index(thing.size) for thing in things])
    center = torch.tensor([[thing.x, thing.y] for thing in things])
    patterns, background_colors = reader.read_backgrounds(pixels)
    pattern = torch.tensor([PATTERNS.index(scene.background.pattern) for scene in targets])
    color_labels = torch.tensor([[float(name in scene.background.colors) for name in NAMES] for scene in targets])
    return (
        F.binary_cross_entropy_with_logits(presence, is_present)
        + F.cross_entropy(shapes[:count], shape)
        + F.cross_entropy(sizes[:count], size)
        + 10 * F.mse_loss(centers[:count], center)
        + F.cross_entropy(patterns, pattern)
        + 3 * F.binary_cross_entropy_with_logits(background_colors, color_labels)
    )


def load_reader() -> SceneReader:
    """Return the reader: loaded from WEIGHTS, or trained with a fixed seed and saved there."""
    torch.manual_seed(SEED)
    reader = SceneReader()
    if WEIGHTS.exists():
        reader.load_state_dict(torch.load(WEIGHTS, weights_only=True))
        return reader.eval()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for step in range(STEPS):
        targets, random = scenes(SEED, step * SCENES_PER_STEP, SCENES_PER_STEP), Random(f"{SEED}/{step}")
        pixels = stack_pixels([draw(scene) for scene in targets])
        pixels = pixels + random.uniform(0, 0.08) * torch.randn(pixels.shape)
        loss = loss_of(reader, pixels, targets, random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            print(f"training the reader: step {step + 1} of {STEPS}, loss {loss.item():.3f}", flush=True)
    WEIGHTS.parent.mkdir(exist_ok=True)
    torch.save(reader.state_dict(), WEIGHTS)
    return reader.eval()


@torch.inference_mode()
def read_attributes(reader: SceneReader, image: NDArray[np.uint8], scene: Scene) -> Iterator[tuple[str, bool]]:
    """Yield the kind of each attribute of a scene's caption, and whether the image (64, 64, 3) has it."""
    pixels = stack_pixels([Image.fromarray(image)])
    patterns, colors = reader.read_backgrounds(pixels)
    pattern = PATTERNS[int(patterns.argmax())]
    expected = scene.background.colors
    predicted = {NAMES[index] for index in colors[0].topk(len(expected)).indices.tolist()}
    yield "background", pattern == scene.background.pattern and predicted == set(expected)
    thing_colors = torch.tensor([NAMES.index(thing.color) for thing in scene.things])
    presence, shapes, sizes, centers = reader.read_things(pixels.expand(len(thing_colors), -1, -1, -1), thing_colors)
    for index, thing in enumerate(scene.things):
        present = bool(presence[index] > 0)
        yield "color", present
        yield "shape", present and SHAPES[int(shapes[index].argmax())] == thing.shape
        if thing.says_size and scene.relation != "inside":
            yield "size", present and SIZE_NAMES[int(sizes[index].argmax())] == thing.size
    if scene.relation:
        yield "relation", bool((presence > 0).all()) and relation_holds(scene, centers)


def relation_holds(scene: Scene, centers: Tensor) -> bool:
    """Return whether the centers agree with the scene's relation or position."""
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


def print_accuracy(
    reader: SceneReader, name: str, images: Sequence[NDArray[np.uint8]], targets: Sequence[Scene]
) -> None:
    """Print the accuracy over all attributes and for each kind."""
    verdicts = Counter(
        v for image, scene in zip(images, targets, strict=True) for v in read_attributes(reader, image, scene)
    )
    kinds = dict.fromkeys(kind for kind, _ in verdicts)
    rates = {kind: verdicts[kind, True] / (verdicts[kind, True] + verdicts[kind, False]) for kind in kinds}
    right = sum(verdicts[kind, True] for kind in kinds) / verdicts.total()
    print(f"{name:<34} {right:6.1%}   " + "  ".join(f"{kind} {rate:.0%}" for kind, rate in rates.items()), flush=True)


def held_out(things: int, count: int) -> list[Scene]:
    """Return `count` held-out scenes of `things` things."""
    selected: list[Scene] = []
    start = 0
    while len(selected) < count:
        selected += [scene for scene in scenes(HELD_OUT, start, 200) if len(scene.things) == things]
        start += 200
    return selected[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="number of scenes of one, two and three things each")
    options = parser.parse_args()
    reader = load_reader()
    for things in (1, 2, 3):
        targets = held_out(things, options.count)
        print_accuracy(reader, f"{things} thing(s), drawn", [np.asarray(draw(scene)) for scene in targets], targets)


if __name__ == "__main__":
    main()
