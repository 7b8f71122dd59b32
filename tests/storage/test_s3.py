"""S3: long listings, missing buckets, servers that refuse or do not answer."""

import hashlib
import http.server
import threading

import pytest

from pipeline import storage
from pipeline.errors import StorageError
from pipeline.storage import retry, s3
from tests.s3 import free_port


def test_a_folder_of_many_pages_is_listed_completely(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PAGE_SIZE", 5)
    folder = f"{s3_bucket}/many"
    names = [f"{hashlib.md5(str(index).encode()).hexdigest()}.parquet" for index in range(200)]
    names += ["1", "a", "f", "zebra", "deep/er", "Ünïcode", "!"]
    filesystem, path = storage.locate(folder)
    filesystem.pipe({f"{path}/{name}": b"" for name in names})
    storage.write_bytes(f"{s3_bucket}/many-more/other", b"")
    assert storage.list_files(folder) == sorted(storage.join(folder, name) for name in names)


def test_a_missing_bucket_is_named(s3_endpoint: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: (the bucket does not exist|there is no such)"):
        storage.write_bytes("s3://no-such-bucket/x", b"")


class _ForbiddingHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_refuses_or_does_not_answer_is_reported(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _ForbiddingHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StorageError, match="s3://b/x: access is denied; check the credentials"):
            storage.read_bytes("s3://b/x")
        server.shutdown()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    with pytest.raises(StorageError, match="s3://b/x: the storage server does not answer"):
        storage.read_bytes("s3://b/x")
