"""Families of scenes that differ in one word of the caption."""

from pipeline.training.data.examples import FAMILY_SIZE, HARD_NEGATIVES


def test_hard_negatives_differ_in_one_word_and_in_their_images() -> None:
    examples = HARD_NEGATIVES.examples(7, 0, 10 * FAMILY_SIZE, 64)
    for start in range(0, len(examples), FAMILY_SIZE):
        family = examples[start : start + FAMILY_SIZE]
        assert len({caption for _, caption in family}) == FAMILY_SIZE
        first, words = family[0][0], sorted(family[0][1].split())
        for image, caption in family[1:]:
            others = set(words) ^ set(caption.split())
            assert len(others - {"a", "an", "of"}) <= 2, f"{family[0][1]} / {caption}"
            assert image.tobytes() != first.tobytes()


def test_hard_negatives_are_the_same_from_any_start() -> None:
    examples, later = HARD_NEGATIVES.examples(7, 0, 11, 64), HARD_NEGATIVES.examples(7, 5, 6, 64)
    assert [caption for _, caption in later] == [caption for _, caption in examples[5:]]
    assert [image.tobytes() for image, _ in later] == [image.tobytes() for image, _ in examples[5:]]
