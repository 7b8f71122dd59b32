"""Storage by URL, on local files and on a real S3 server."""

import hashlib
import http.server
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.storage import s3
from pipeline.storage.allowed_roots import AllowedRoots
from tests.s3 import CREDENTIALS, free_port


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    return request.getfixturevalue("s3_bucket") + "/run" if request.param == "s3" else f"memory://{tmp_path}/run"


def test_what_is_written_is_read_listed_and_deleted(folder: str) -> None:
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


def test_a_folder_of_many_pages_is_listed_whole(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PAGE", 5)
    folder = f"{s3_bucket}/many"
    names = [f"{hashlib.md5(str(index).encode()).hexdigest()}.parquet" for index in range(200)]
    names += ["1", "a", "f", "zebra", "deep/er", "Ünïcode", "!"]
    filesystem, path = storage.locate(folder)
    filesystem.pipe({f"{path}/{name}": b"" for name in names})
    storage.write_bytes(f"{s3_bucket}/many-more/not-here", b"")
    assert storage.list_files(folder) == sorted(storage.join(folder, name) for name in names)


def test_a_file_lists_itself(folder: str) -> None:
    url = storage.join(folder, "a.parquet")
    storage.write_bytes(url, b"")
    assert storage.list_files(url) == [url]


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "ledger").symlink_to("ledger")
    with pytest.raises(storage.StorageError):
        storage.list_files(str(tmp_path / "ledger"))
    assert storage.list_files(str(tmp_path / "none")) == []


def test_files_of_killed_writers_are_deleted_and_no_others(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "data" / "a.parquet"), b"whole")
    for left in (tmp_path / f".run.json.{'0a' * 16}.part", tmp_path / "data" / f".a.parquet.{'f' * 32}.part"):
        left.write_bytes(b"half")
    (tmp_path / "data" / "a.part").write_bytes(b"a user's")
    storage.delete_leftovers(str(tmp_path))
    assert storage.list_files(str(tmp_path)) == [str(tmp_path / "data" / name) for name in ("a.parquet", "a.part")]


def test_hugging_face_is_a_storage() -> None:
    filesystem, path = storage.locate("hf://datasets/someone/prompts/m.parquet")
    assert (type(filesystem).__name__, path) == ("HfFileSystem", "datasets/someone/prompts/m.parquet")
    assert storage.AllowedRoots("hf://datasets/someone/prompts/m.parquet").resolve("a.png").startswith("hf://datasets/")


def test_a_missing_file_is_one_clear_line(folder: str) -> None:
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
def test_one_of_many_creators_wins_and_may_ask_again(folder: str) -> None:
    url = storage.join(folder, "lease")
    won: list[bytes] = []

    def create(content: bytes) -> None:
        if storage.create_bytes(url, content):
            won.append(content)

    threads = [threading.Thread(target=create, args=(f"creator {n}".encode(),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read_bytes(url) == won[0]
    assert storage.create_bytes(url, won[0]), "a lost reply, sent again, is no conflict"
    assert not storage.create_bytes(url, b"another")


def test_a_local_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "x"), b"1")
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError):
        storage.write_bytes(str(tmp_path / "taken"), b"1")
    assert sorted(os.listdir(tmp_path)) == ["taken", "x"]


def test_a_missing_bucket_is_said(s3_endpoint: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: (the bucket does not exist|there is no such)"):
        storage.write_bytes("s3://no-such-bucket/x", b"")


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_refuses_or_is_not_there_is_said(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StorageError, match="s3://b/x: access is denied; check the credentials"):
            storage.read_bytes("s3://b/x")
        server.shutdown()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setitem(s3.S3_CLIENT_CONFIG, "retries", {"max_attempts": 1})
    with pytest.raises(StorageError, match="s3://b/x: the storage server does not answer"):
        storage.read_bytes("s3://b/x")


def test_messages_hold_no_secret() -> None:
    assert storage.redact_url("https://user:hunter2@host/a?X-Amz-Signature=abc") == "https://host/a"
    with pytest.raises(StorageError) as caught:
        storage.read_bytes("ftp://user:hunter2@host/a")
    assert "hunter2" not in str(caught.value)
    assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_pyarrow_reads_through_the_same_endpoint(s3_bucket: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a"]}), sink)
    storage.write_bytes(f"{s3_bucket}/m/x.parquet", sink.getvalue().to_pybytes())
    filesystem, path = storage.arrow_filesystem(f"{s3_bucket}/m/x.parquet")
    assert pq.read_table(path, filesystem=filesystem).to_pydict() == {"id": ["a"]}


class TestAllowedRoots:
    @pytest.fixture
    def roots(self, tmp_path: Path) -> AllowedRoots:
        (tmp_path / "m" / "pictures").mkdir(parents=True)
        (tmp_path / "m" / "pictures" / "a.png").write_bytes(b"a")
        (tmp_path / "m" / "rows.parquet").write_bytes(b"")
        (tmp_path / "m-secret").mkdir()
        (tmp_path / "m-secret" / "a.png").write_bytes(b"secret")
        (tmp_path / "m" / "link").symlink_to(tmp_path / "m-secret")
        return AllowedRoots(str(tmp_path / "m" / "rows.parquet"), ("s3://pictures/public",))

    @pytest.mark.parametrize("reference", ["pictures/a.png", "./pictures/a.png"])
    def test_relative_paths_are_below_the_manifest(self, roots: AllowedRoots, tmp_path: Path, reference: str) -> None:
        assert roots.resolve(reference) == str(tmp_path / "m" / "pictures" / "a.png")

    def test_absolute_paths_and_urls_below_a_root_are_read(self, roots: AllowedRoots, tmp_path: Path) -> None:
        assert roots.resolve(str(tmp_path / "m" / "pictures" / "a.png")).endswith("a.png")
        assert roots.resolve(f"file://{tmp_path}/m/pictures/a.png").endswith("a.png")
        assert roots.resolve("s3://pictures/public/a.png") == "s3://pictures/public/a.png"

    @pytest.mark.parametrize(
        "reference",
        [
            "../m-secret/a.png",
            "pictures/../../m-secret/a.png",
            "link/a.png",
            "/etc/passwd",
            "file:///etc/passwd",
            "s3://pictures/private/a.png",
            "s3://pictures/publicity/a.png",
            "s3://pictures/public/../private/a.png",
            "http://169.254.169.254/latest",
            "simplecache::file:///etc/passwd",
            "a\0b",
            "",
        ],
    )
    def test_everything_else_is_refused(self, roots: AllowedRoots, tmp_path: Path, reference: str) -> None:
        with pytest.raises(StorageError):
            roots.resolve(reference)
        with pytest.raises(StorageError):
            roots.resolve(f"{tmp_path}/m-secret/a.png")

    def test_a_root_may_be_given_relative_to_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        roots = AllowedRoots("../m", ("../pictures",))
        assert roots.resolve(f"{tmp_path}/pictures/a.png") == f"{tmp_path}/pictures/a.png"
        assert roots.resolve("a.png") == f"{tmp_path}/m/a.png"

    @given(st.lists(st.sampled_from(["..", ".", "a", "link", "~", "%2e%2e", "...", "", "file:", "\\.."]), max_size=6))
    def test_no_spelling_leaves_the_root(self, tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
        base = os.path.realpath(tmp_path_factory.getbasetemp())
        try:
            path = AllowedRoots(base).resolve("/".join(parts))
        except StorageError:
            return
        assert os.path.commonpath([base, os.path.realpath(path)]) == base
