"""Inpainting examples: a scene, the mask of the area to repaint, and the caption for it."""

from dataclasses import dataclass, replace
from random import Random

from PIL import Image, ImageDraw

from pipeline.training.data.scenes import Scene, Thing

Canvas = ImageDraw.ImageDraw


@dataclass(frozen=True, slots=True)
class InpaintingExample:
    """The scene to restore, its caption, and the mask (H, W), which is white in the area to repaint."""

    scene: Scene
    caption: str
    mask: Image.Image


def inpainting_example(
    scene: Scene, random: Random, width: int, *, removal: float, caption_dropout: float
) -> InpaintingExample:
    """Return the scene with a mask over a whole thing (60 %), brush strokes (20 %) or rectangles (20 %).

    With the probability `removal`, a masked thing is removed: the target is the scene without it, and the caption is
    empty. A masked thing that stays is always named, since an empty caption must mean that the area becomes empty.
    The captions for strokes and rectangles are dropped with the probability `caption_dropout`.
    """
    mask = Image.new("L", (width, width))
    canvas = ImageDraw.Draw(mask)
    kind = random.choices(("thing", "strokes", "rectangles"), (0.6, 0.2, 0.2))[0]
    if kind == "thing":
        thing = random.choice(scene.things)
        _mask_thing(canvas, thing, random, width)
        if random.random() < removal:
            others = tuple(other for other in scene.things if other is not thing)
            return InpaintingExample(replace(scene, things=others), "", mask)
        return InpaintingExample(scene, scene.caption(), mask)
    if kind == "strokes":
        _mask_strokes(canvas, random, width)
    else:
        _mask_rectangles(canvas, random, width)
    caption = "" if random.random() < caption_dropout else scene.caption()
    return InpaintingExample(scene, caption, mask)


def _mask_strokes(canvas: Canvas, random: Random, width: int) -> None:
    for _ in range(random.randint(1, 4)):
        points = [(random.random() * width, random.random() * width) for _ in range(random.randint(2, 4))]
        canvas.line(points, fill=255, width=round(random.uniform(0.06, 0.16) * width), joint="curve")


def _mask_rectangles(canvas: Canvas, random: Random, width: int) -> None:
    for _ in range(random.randint(1, 2)):
        x, y = random.random(), random.random()
        box_width, box_height = random.uniform(0.2, 0.7), random.uniform(0.2, 0.7)
        box = (x - box_width / 2, y - box_height / 2, x + box_width / 2, y + box_height / 2)
        canvas.rectangle([edge * width for edge in box], 255)


def _mask_thing(canvas: Canvas, thing: Thing, random: Random, width: int) -> None:
    """Draw a box or an ellipse that covers the whole thing with a random margin."""
    margins = [1.12 * thing.radius + random.uniform(0.02, 0.12) for _ in range(4)]
    box = (thing.x - margins[0], thing.y - margins[1], thing.x + margins[2], thing.y + margins[3])
    left, top, right, bottom = (edge * width for edge in box)
    if random.random() < 0.6:
        canvas.rectangle((left, top, right, bottom), fill=255)
    else:
        x, y, scale = (left + right) / 2, (top + bottom) / 2, 0.71  # the ellipse encloses the box
        half_width, half_height = scale * (right - left), scale * (bottom - top)
        canvas.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=255)
