"""Files by URL on a local disk, on a real S3 server and in memory."""

import threading
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import StorageError


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    return request.getfixturevalue("s3_bucket") + "/run" if request.param == "s3" else f"memory://{tmp_path}/run"


def test_written_files_are_read_listed_and_deleted(folder: str) -> None:
    for name in ("data/b.parquet", "data/a.parquet", "data/deep/c.parquet", "run.json"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    storage.write_bytes(storage.join(folder, "run.json"), b"second")
    assert storage.read_bytes(storage.join(folder, "run.json")) == b"second"
    listed = storage.list_files(folder, ".parquet")
    assert listed == [storage.join(folder, "data", name) for name in ("a.parquet", "b.parquet", "deep/c.parquet")]
    assert storage.is_folder(storage.join(folder, "data"))
    assert not storage.is_folder(storage.join(folder, "run.json"))
    storage.delete(listed[0])
    storage.delete(listed[0])
    assert not storage.exists(listed[0])
    assert storage.list_files(storage.join(folder, "nothing")) == []


def test_a_file_lists_itself(folder: str) -> None:
    url = storage.join(folder, "a.parquet")
    storage.write_bytes(url, b"")
    assert storage.list_files(url) == [url]


def test_a_missing_file_gives_a_one_line_error(folder: str) -> None:
    with pytest.raises(StorageError, match="there is no such file or folder$") as caught:
        storage.read_bytes(storage.join(folder, "absent.png"))
    assert "\n" not in str(caught.value)


def test_a_file_over_the_limit_is_not_read(folder: str) -> None:
    url = storage.join(folder, "large.bin")
    storage.write_bytes(url, b"x" * 1001)
    with pytest.raises(StorageError, match="1,001 bytes; at most 1,000 are read"):
        storage.read_bytes(url, max_bytes=1000)
    assert len(storage.read_bytes(url, max_bytes=1001)) == 1001


@pytest.mark.parametrize("folder", ["local", "s3"], indirect=True)
def test_one_of_many_creators_wins_and_can_repeat_its_request(folder: str) -> None:
    url = storage.join(folder, "lease")
    winners: list[bytes] = []

    def create(content: bytes) -> None:
        if storage.create_bytes(url, content):
            winners.append(content)

    threads = [threading.Thread(target=create, args=(f"creator {n}".encode(),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert storage.read_bytes(url) == winners[0]
    assert storage.create_bytes(url, winners[0]), "a request that is repeated after a lost reply is not a conflict"
    assert not storage.create_bytes(url, b"another")
