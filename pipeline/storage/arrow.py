"""pyarrow filesystems whose requests are retried."""

import io
from typing import Any, Final, cast

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.filesystem import locate, url_of
from pipeline.storage.retry import storage_errors, with_retries

_BUFFER_BYTES: Final = 2**22


def arrow_filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow filesystem that serves a path or URL, and the path inside it.

    pyarrow's own S3 filesystem is not used, because it ignores AWS_ENDPOINT_URL."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        return pafs.LocalFileSystem(), path
    return pafs.PyFileSystem(_RetryingHandler(url)), path


def open_file(url: str) -> io.BufferedReader:
    """Open a file for reading, in requests that are retried one by one."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with storage_errors(url):
            return open(path, "rb")
    return io.BufferedReader(_RangeFile(filesystem, path), _BUFFER_BYTES)


class _RetryingHandler(pafs.FSSpecHandler):
    """An fsspec handler for pyarrow that retries each request.

    It is pickled as its URL: another process opens its own connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        super().__init__(locate(url)[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _RetryingHandler, (self._url,)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return with_retries(self._url, lambda: super(_RetryingHandler, self).get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return with_retries(self._url, lambda: super(_RetryingHandler, self).get_file_info_selector(selector))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_RangeFile(self.fs, path), mode="r")


class _RangeFile(io.RawIOBase):
    """A read-only remote file. Each read is one range request, without read-ahead."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        self._filesystem, self._path, self._position = filesystem, path, 0
        self._url = url_of(filesystem, path)
        self._size = int(with_retries(self._url, lambda: filesystem.info(path)["size"]))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        start, end = self._position, self._size if size < 0 else min(self._position + size, self._size)
        if start >= end:
            return b""
        data = with_retries(self._url, lambda: self._read_range(start, end))
        self._position = end
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _read_range(self, start: int, end: int) -> bytes:
        data = cast(bytes, self._filesystem.cat_file(self._path, start=start, end=end))
        if len(data) != end - start:
            raise ConnectionError(f"the server sent {len(data):,} bytes instead of {end - start:,}")
        return data
