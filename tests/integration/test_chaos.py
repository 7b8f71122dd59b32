"""The short form of the chaos runs: kills at random moments, then the same command until it ends."""

from pathlib import Path

import pytest

from tests.chaos import chaos


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "rows", "kills"), [(1, 120, 3), (20, 300, 5)], ids=["short", "long"])
def test_after_any_kills_every_row_is_there_once_and_the_same(
    tmp_path: Path, seeds: int, rows: int, kills: int
) -> None:
    stories = list(chaos(range(seeds), rows, kills, tmp_path))
    assert [str(story) for story in stories if story.problems] == []
    assert sum(story.kills.total() for story in stories) > 0
