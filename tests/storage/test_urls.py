"""URLs: schemes, and what messages may show of them."""

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import StorageError
from tests.s3 import CREDENTIALS


def test_messages_contain_no_secret() -> None:
    assert storage.redact_url("https://user:hunter2@host/a?X-Amz-Signature=abc") == "https://host/a"
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("ftp://user:hunter2@host/a")
    assert "hunter2" not in str(caught.value)
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_urls_of_local_files_are_read_as_other_tools_write_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ä b.png"
    file.write_bytes(b"a")
    path = str(file)
    encoded = file.as_uri().removeprefix("file://")
    for url in (f"file://{encoded}", f"file://localhost{encoded}", f"FILE://{encoded}", f"file:{encoded}"):
        assert storage.is_url(url) and storage.is_local(url)
        assert storage.read_bytes(url) == b"a", url
        assert storage.locate(url)[1] == path
        assert storage.join(storage.parent(url), "ä b.png") == path
    for url in (f"file://{path}", f"file:{path}", f"local://{path}"):  # as fsspec and Hadoop write them
        assert storage.read_bytes(url) == b"a"
    assert storage.parent("file:///a") == "/"
    monkeypatch.chdir(tmp_path)
    assert storage.read_bytes("file://ä b.png") == b"a"


def test_a_percent_sign_of_a_file_name_stays(tmp_path: Path) -> None:
    storage.write_bytes(url := storage.join(tmp_path.as_uri(), "50%25 a%20b.png"), b"a")
    assert [file.name for file in tmp_path.iterdir()] == ["50%25 a%20b.png"]
    assert storage.read_bytes(url) == storage.read_bytes(f"file://{tmp_path}/50%25 a%20b.png") == b"a"
    assert storage.read_bytes(f"file://{tmp_path}/50%2525%20a%2520b.png") == b"a"
    with pytest.raises(StorageError, match="not a usable path"):
        storage.read_bytes(f"file://{tmp_path}/a%00b")
