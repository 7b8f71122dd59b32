"""The short form of the chaos runs: everything happens at random moments, then the same command until it ends."""

from pathlib import Path

import pytest

from tests.chaos import PLACES, chaos


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_after_any_faults_every_row_is_there_once_and_the_same(tmp_path: Path, place: str) -> None:
    (story,) = chaos(range(1), 120, 3, tmp_path, (place,))
    assert story.problems == []
    assert story.faults.total() > 0
