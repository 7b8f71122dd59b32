"""Faults of storage: those that pass are retried and counted, final ones end at once in one line."""

import errno
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.storage import retry


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    storage.take_fault_counts()


def faulty(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, times: int) -> list[int]:
    """The memory filesystem fails so many times; the list grows by each call."""
    filesystem = storage.locate("memory://x/y")[0]
    calls: list[int] = []
    whole = getattr(filesystem, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return whole(*arguments, **options)

    monkeypatch.setattr(filesystem, name, call, raising=True)
    return calls


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "Please reduce your request rate"),
        OSError(errno.EIO, "An error occurred (500) when calling the PutObject operation: Internal Server Error"),
        ConnectionResetError("cut"),
        TimeoutError("late"),
    ],
)
def test_faults_that_pass_are_retried_and_counted(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = faulty(monkeypatch, "pipe_file", error, 3)
    storage.write_bytes("memory://faults/a", b"content")
    assert (len(calls), storage.read_bytes("memory://faults/a")) == (4, b"content")
    assert storage.take_fault_counts() == {"storage_retries": 3}
    assert storage.take_fault_counts() == {}


def test_attempts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = faulty(monkeypatch, "cat_file", ConnectionResetError("cut"), 100)
    with pytest.raises(storage.StorageUnavailableError, match=r"8 attempts") as caught:
        storage.read_bytes("memory://faults/a")
    assert len(calls) == 8 and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [PermissionError("no"), FileNotFoundError("no"), OSError(errno.ENOSPC, "disk full")])
def test_final_faults_are_not_retried(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = faulty(monkeypatch, "cat_file", error, 100)
    with pytest.raises(storage.StorageError) as caught:
        storage.read_bytes("memory://faults/a")
    assert len(calls) == 1 and not isinstance(caught.value, storage.StorageUnavailableError)


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(storage.StorageError, match="No space left"):
        storage.write_bytes(str(tmp_path / "a.parquet"), b"content")
    assert list(tmp_path.iterdir()) == []
