"""Storage over HTTP through a proxy that injects the faults of busy servers and bad networks."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.storage import retry
from tests.faulty_s3 import FaultyProxy, Kind, faulty_proxy

TRANSIENT: tuple[Kind, ...] = ("slow down", "error", "too many", "timeout", "cut", "reply lost", "short")


@pytest.fixture
def proxy(s3_endpoint: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage.take_fault_counts()
        yield proxy


@pytest.mark.parametrize("kind", TRANSIENT)  # HEAD replies have no body: "short" and "timeout" skip them
def test_transient_faults_are_retried_and_counted(proxy: FaultyProxy, s3_bucket: str, kind: Kind) -> None:
    url, content = f"{s3_bucket}/run/data/a.parquet", os.urandom(100_000)
    storage.write_bytes(url, b"old")
    with proxy.faulty(kind, times=3):
        storage.write_bytes(url, content)
    with proxy.faulty(kind, times=3):
        assert storage.read_bytes(url) == content
    with proxy.faulty(kind, times=3):
        assert storage.list_files(f"{s3_bucket}/run") == [url]
    with proxy.faulty(kind, times=3):
        assert storage.exists(url)
    assert storage.take_fault_counts()["storage_retries"] >= 4  # aiohttp itself retries a cut connection once


@pytest.mark.parametrize("kind", ["cut", "reply lost", "slow down"])
def test_a_file_is_created_once_when_replies_are_lost(proxy: FaultyProxy, s3_bucket: str, kind: Kind) -> None:
    with proxy.faulty(kind, times=3):
        assert storage.create_bytes(f"{s3_bucket}/lease", b"mine")
    with proxy.faulty(kind, times=3):
        assert not storage.create_bytes(f"{s3_bucket}/lease", b"other")


def test_a_forbidden_request_is_not_retried(proxy: FaultyProxy, s3_bucket: str) -> None:
    with proxy.faulty("forbidden"), pytest.raises(storage.StorageError, match="access is denied") as caught:
        storage.write_bytes(f"{s3_bucket}/a", b"content")
    assert proxy.injected["forbidden"] == 1
    assert "\n" not in str(caught.value) and "secret-of-the-test" not in str(caught.value)


@pytest.mark.parametrize("hours", [-7, 7])
def test_a_clock_that_differs_from_the_servers_is_corrected_once(
    proxy: FaultyProxy, s3_bucket: str, hours: float
) -> None:
    proxy.checks_dates, proxy.clock_offset = True, timedelta(hours=hours)
    url = f"{s3_bucket}/a.parquet"
    assert not storage.exists(url)
    storage.write_bytes(url, b"content")
    assert storage.read_bytes(url) == b"content"
    assert storage.list_files(s3_bucket) == [url]
    proxy.clock_offset = timedelta()
    assert storage.create_bytes(f"{s3_bucket}/lease", b"mine")
    assert proxy.injected["refused date"] == 2


def test_a_storage_that_never_recovers_raises_after_8_attempts(
    proxy: FaultyProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    with proxy.faulty("slow down"), pytest.raises(storage.StorageUnavailableError, match="8 attempts"):
        storage.write_bytes(f"{s3_bucket}/a", b"content")


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_table_is_read_through_faults(proxy: FaultyProxy, s3_bucket: str, tmp_path: Path, kind: Kind) -> None:
    rows = pa.table({"id": [f"r{index}" for index in range(5000)]})
    pq.write_table(rows, tmp_path / "m.parquet")
    storage.write_bytes(f"{s3_bucket}/m.parquet", (tmp_path / "m.parquet").read_bytes())
    with proxy.faulty(kind, times=4):
        filesystem, path = storage.arrow_filesystem(f"{s3_bucket}/m.parquet")
        assert pq.read_table(path, filesystem=filesystem).equals(rows)
