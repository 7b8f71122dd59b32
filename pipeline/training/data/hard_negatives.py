"""Scenes that differ in one word of their captions: what a CLIP must look closely to tell apart."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final

from pipeline.training.data.scenes import COLORS, SHAPES, SIZES, Scene, Thing

_OPPOSITE: Final = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_TURNED: Final = {"left of": "above", "above": "left of", "right of": "below", "below": "right of"}


def hard_negative(scene: Scene, random: Random) -> Scene:
    """The scene with one thing changed: a shape, a color, a size that is said, or how two things stand."""
    changes: list[Callable[[Scene, Random], Scene]] = [_other_shape, _other_color]
    if any(thing.says_size for thing in scene.things) and scene.relation != "inside":
        changes.append(_other_size)
    if scene.relation in _OPPOSITE:
        changes += [_opposite, _exchanged, _turned]
    return random.choice(changes)(scene, random)


def _other_shape(scene: Scene, random: Random) -> Scene:
    place = 0 if scene.relation == "inside" else random.randrange(len(scene.things))  # the outer one must have room
    thing = scene.things[place]
    return _with(scene, place, replace(thing, shape=random.choice([name for name in SHAPES if name != thing.shape])))


def _other_color(scene: Scene, random: Random) -> Scene:
    place = random.randrange(len(scene.things))
    taken = {*scene.background.colors, *(thing.color for thing in scene.things)}
    color = random.choice([name for name in COLORS if name not in taken])
    return _with(scene, place, replace(scene.things[place], color=color))


def _other_size(scene: Scene, random: Random) -> Scene:
    place = random.choice([index for index, thing in enumerate(scene.things) if thing.says_size])
    thing = scene.things[place]
    size = next(name for name in SIZES if name != thing.size)
    return _with(scene, place, replace(thing, size=size, radius=random.uniform(*SIZES[size])))


def _opposite(scene: Scene, random: Random) -> Scene:
    first, second = scene.things
    places = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
    return replace(scene, things=places, relation=_OPPOSITE[scene.relation])


def _exchanged(scene: Scene, random: Random) -> Scene:
    first, second = scene.things
    return replace(scene, things=(replace(second, x=first.x, y=first.y), replace(first, x=second.x, y=second.y)))


def _turned(scene: Scene, random: Random) -> Scene:
    turned = tuple(replace(thing, x=thing.y, y=thing.x) for thing in scene.things)
    return replace(scene, things=turned, relation=_TURNED[scene.relation])


def _with(scene: Scene, place: int, thing: Thing) -> Scene:
    return replace(scene, things=(*scene.things[:place], thing, *scene.things[place + 1 :]))
