"""The output of a test, on the local disk and in object storage."""

from pathlib import Path

import pytest


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"{request.getfixturevalue('s3_bucket')}/out"
