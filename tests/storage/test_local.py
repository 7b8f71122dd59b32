"""Local files: atomic writes, leftovers of killed writers, unreadable folders."""

import errno
import os
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import StorageError


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "ledger").symlink_to("ledger")
    with pytest.raises(storage.StorageError):
        storage.list_files(str(tmp_path / "ledger"))
    assert storage.list_files(str(tmp_path / "none")) == []


def test_only_the_temporary_files_of_killed_writers_are_deleted(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "data" / "a.parquet"), b"whole")
    for leftover in (tmp_path / f".run.json.{'0a' * 16}.part", tmp_path / "data" / f".a.parquet.{'f' * 32}.part"):
        leftover.write_bytes(b"half")
    (tmp_path / "data" / "a.part").write_bytes(b"a user's")
    storage.delete_leftovers(str(tmp_path))
    assert storage.list_files(str(tmp_path)) == [str(tmp_path / "data" / name) for name in ("a.parquet", "a.part")]


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"1")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        storage.write_bytes(str(tmp_path / "folder"), b"1")
    assert sorted(os.listdir(tmp_path)) == ["folder", "x"]


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", raise_disk_full)
    with pytest.raises(storage.StorageError, match="No space left"):
        storage.write_bytes(str(tmp_path / "a.parquet"), b"content")
    assert list(tmp_path.iterdir()) == []
