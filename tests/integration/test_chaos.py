"""A short chaos run in each environment."""

from pathlib import Path

import pytest

from tests.chaos.environments import ENVIRONMENTS
from tests.chaos.stories import chaos


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_after_any_faults_every_row_is_there_once_and_the_same(tmp_path: Path, environment: str) -> None:
    (story,) = chaos(range(1), 120, 3, tmp_path, (environment,))
    assert story.problems == []
    assert story.faults.total() > 0
