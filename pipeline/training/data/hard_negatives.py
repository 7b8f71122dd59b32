"""Hard negatives for the CLIP recipe: scenes whose captions differ from a given one in one word."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from pipeline.training.data.scenes import COLORS, SHAPES, SIZES, Scene, Thing

_INVERSE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_TRANSPOSED: Final = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}


def hard_negative(scene: Scene, random: Random) -> Scene:
    """Return the scene with one change: a shape, a color, a size that the caption names, or the relation."""
    changes: list[Callable[[Scene, Random], Scene]] = [_change_shape, _change_color]
    if any(thing.says_size for thing in scene.things) and scene.relation != "inside":
        changes.append(_change_size)
    if scene.relation in _INVERSE:
        changes += [_invert_relation, _swap_things, _transpose]
    return random.choice(changes)(scene, random)


def _change_shape(scene: Scene, random: Random) -> Scene:
    """Change the shape of one thing, but not of one that encloses another, which needs room for it."""
    index = 0 if scene.relation == "inside" else random.randrange(len(scene.things))
    thing = scene.things[index]
    return _replace(scene, index, replace(thing, shape=random.choice([name for name in SHAPES if name != thing.shape])))


def _change_color(scene: Scene, random: Random) -> Scene:
    index = random.randrange(len(scene.things))
    used = {*scene.background.colors, *(thing.color for thing in scene.things)}
    color = random.choice([name for name in COLORS if name not in used])
    return _replace(scene, index, replace(scene.things[index], color=color))


def _change_size(scene: Scene, random: Random) -> Scene:
    index = random.choice([index for index, thing in enumerate(scene.things) if thing.says_size])
    thing = scene.things[index]
    size = next(name for name in SIZES if name != thing.size)
    return _replace(scene, index, replace(thing, size=size, radius=random.uniform(*SIZES[size])))


def _invert_relation(scene: Scene, random: Random) -> Scene:
    """Exchange the positions of both things; the caption names them in the same order, with the inverse relation."""
    first, second = scene.things
    things = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
    return replace(scene, things=things, relation=_INVERSE[scene.relation])


def _swap_things(scene: Scene, random: Random) -> Scene:
    """Exchange the positions of both things; the caption names them in the other order, with the same relation."""
    first, second = scene.things
    return replace(scene, things=(replace(second, x=first.x, y=first.y), replace(first, x=second.x, y=second.y)))


def _transpose(scene: Scene, random: Random) -> Scene:
    """Mirror the positions along the diagonal: a horizontal relation becomes a vertical one, and vice versa."""
    things = tuple(replace(thing, x=thing.y, y=thing.x) for thing in scene.things)
    return replace(scene, things=things, relation=_TRANSPOSED[scene.relation])


def _replace(scene: Scene, index: int, thing: Thing) -> Scene:
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))
