"""Drawn scenes: the captions describe the images."""

from random import Random

import numpy as np
import pytest

from pipeline.training.data.drawing import draw
from pipeline.training.data.examples import scenes
from pipeline.training.data.scenes import COLORS, SHAPES, Background, Scene, Thing, random_scene, vocabulary
from pipeline.training.tokenizer import word_tokenizer


def test_the_same_seed_and_position_give_the_same_scenes() -> None:
    assert scenes(4, 10, 5) == scenes(4, 0, 15)[10:]
    assert scenes(4, 0, 5) != scenes(5, 0, 5)


def test_a_caption_names_every_thing_and_fits_the_tokenizer_word_by_word() -> None:
    tokenizer = word_tokenizer(vocabulary(), 32)
    for scene in scenes(7, 0, 300):
        caption = scene.caption()
        assert all(f"{thing.color} {thing.shape}" in caption for thing in scene.things)
        assert caption.endswith("background")
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.replace(",", " ,").split()) + 2 <= 32


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_thing_is_drawn_in_its_color_at_its_position(shape: str, size: str) -> None:
    radius = {"small": 0.14, "large": 0.22}[size]
    scene = Scene((Thing(shape, "red", size, 0.4, 0.6, radius),), Background("plain", ("white",)))
    pixels = np.asarray(draw(scene))
    rows, columns = np.nonzero((pixels == COLORS["red"]).all(-1))
    assert columns.mean() / 64 == pytest.approx(0.4, abs=0.04)
    assert rows.mean() / 64 == pytest.approx(0.6, abs=0.06)
    assert 0.75 * 2 * radius - 0.05 < np.ptp(columns) / 64 <= 1.1 * 2 * radius


def test_things_are_positioned_as_their_relation_says() -> None:
    random, relations = Random(0), set()
    for scene in (random_scene(random) for _ in range(2000)):
        if len(scene.things) != 2 or scene.relation in ("", "inside"):
            continue
        first, second = scene.things
        relations.add(scene.relation)
        assert {
            "left of": first.x < second.x,
            "right of": first.x > second.x,
            "above": first.y < second.y,
            "below": first.y > second.y,
        }[scene.relation]
    assert len(relations) == 4
