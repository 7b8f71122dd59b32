"""One local Ray for all integration tests; it knows the S3 server of the session."""

import logging
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="session")
def local_ray(s3_endpoint: str) -> Iterator[None]:
    if ray.is_initialized():
        ray.shutdown()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=256 * 2**20,
    )
    yield
    ray.shutdown()
