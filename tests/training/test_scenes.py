"""The world that the embedded model knows: captions say what is drawn."""

from random import Random

import numpy as np
import pytest

from pipeline.training.data.examples import FAMILY, HARD_NEGATIVES, scenes
from pipeline.training.data.scenes import COLORS, SHAPES, Background, Scene, Thing, draw, random_scene, vocabulary
from pipeline.training.tokenizer import word_tokenizer


def test_the_same_seed_and_place_give_the_same_scenes() -> None:
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
def test_a_thing_is_drawn_in_its_color_at_its_place(shape: str, size: str) -> None:
    radius = {"small": 0.14, "large": 0.22}[size]
    scene = Scene((Thing(shape, "red", size, 0.4, 0.6, radius),), Background("plain", ("white",)))
    picture = np.asarray(draw(scene))
    rows, columns = np.nonzero((picture == COLORS["red"]).all(-1))
    assert columns.mean() / 64 == pytest.approx(0.4, abs=0.04)
    assert rows.mean() / 64 == pytest.approx(0.6, abs=0.06)
    assert 0.75 * 2 * radius - 0.05 < np.ptp(columns) / 64 <= 1.1 * 2 * radius


def test_a_relation_says_where_the_first_thing_stands() -> None:
    random, seen = Random(0), set()
    for scene in (random_scene(random) for _ in range(2000)):
        if len(scene.things) != 2 or scene.relation in ("", "inside"):
            continue
        first, second = scene.things
        seen.add(scene.relation)
        assert {
            "left of": first.x < second.x,
            "right of": first.x > second.x,
            "above": first.y < second.y,
            "below": first.y > second.y,
        }[scene.relation]
    assert len(seen) == 4


def test_siblings_differ_in_their_captions_and_pictures_and_are_the_same_from_any_start() -> None:
    examples = HARD_NEGATIVES.examples(7, 0, 10 * FAMILY, 64)
    for start in range(0, len(examples), FAMILY):
        family = examples[start : start + FAMILY]
        assert len({caption for _, caption in family}) == FAMILY
        first, words = family[0][0], sorted(family[0][1].split())
        for picture, caption in family[1:]:
            others = set(words) ^ set(caption.split())
            assert len(others - {"a", "an", "of"}) <= 2, f"{family[0][1]} / {caption}"
            assert picture.tobytes() != first.tobytes()
    again = HARD_NEGATIVES.examples(7, 5, 6, 64)
    assert [caption for _, caption in again] == [caption for _, caption in examples[5:11]]
    assert [picture.tobytes() for picture, _ in again] == [picture.tobytes() for picture, _ in examples[5:11]]
