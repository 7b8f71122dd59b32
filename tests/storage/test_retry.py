"""Transient errors are retried and counted; other errors raise at once, with one line."""

import errno
from typing import Any

import pytest

from pipeline import storage
from pipeline.storage import retry


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    storage.take_fault_counts()


def inject_errors(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, times: int) -> list[int]:
    """Make a method of the memory filesystem fail `times` times; return a list with one entry per call."""
    filesystem = storage.locate("memory://x/y")[0]
    calls: list[int] = []
    original = getattr(filesystem, name)

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return original(*arguments, **options)

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
def test_transient_errors_are_retried_and_counted(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = inject_errors(monkeypatch, "pipe_file", error, 3)
    storage.write_bytes("memory://faults/a", b"content")
    assert (len(calls), storage.read_bytes("memory://faults/a")) == (4, b"content")
    assert storage.take_fault_counts() == {"storage_retries": 3}
    assert storage.take_fault_counts() == {}


def test_attempts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = inject_errors(monkeypatch, "cat_file", ConnectionResetError("cut"), 100)
    with pytest.raises(storage.StorageUnavailableError, match=r"8 attempts") as caught:
        storage.read_bytes("memory://faults/a")
    assert len(calls) == 8 and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [PermissionError("no"), FileNotFoundError("no"), OSError(errno.ENOSPC, "disk full")])
def test_other_errors_are_not_retried(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = inject_errors(monkeypatch, "cat_file", error, 100)
    with pytest.raises(storage.StorageError) as caught:
        storage.read_bytes("memory://faults/a")
    assert len(calls) == 1 and not isinstance(caught.value, storage.StorageUnavailableError)
