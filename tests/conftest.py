"""Settings and fixtures that every test shares: one thread, a quiet local Ray, an S3 server."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import hypothesis
import pytest
import torch

from tests.s3 import CREDENTIALS, s3_server

torch.set_num_threads(1)
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server; the environment names it for the rest of the session, worker processes included."""
    with s3_server(tmp_path_factory.mktemp("s3")) as endpoint, pytest.MonkeyPatch.context() as environment:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
            environment.setenv(name, value)
        yield endpoint


@pytest.fixture
def s3_bucket(s3_endpoint: str, tmp_path: Path) -> str:
    """The URL of an empty bucket."""
    from pipeline.storage import locate

    name = "b" + "".join(letter for letter in tmp_path.name.lower() if letter.isalnum())[-40:] + os.urandom(3).hex()
    locate(f"s3://{name}")[0].mkdir(name)
    return f"s3://{name}"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of storage are tried again at once."""
    monkeypatch.setattr("pipeline.storage.retry._FIRST_WAIT", 0.01)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
