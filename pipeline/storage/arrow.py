"""pyarrow's view of a storage: its readers, with this package's retries."""

import io
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.implementations.local import LocalFileSystem

from pipeline.storage.filesystem import locate, url_of
from pipeline.storage.retry import retried


def arrow_filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """The same for pyarrow's readers (pyarrow's own S3 filesystem ignores AWS_ENDPOINT_URL)."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        return pafs.LocalFileSystem(), path
    return pafs.PyFileSystem(_Readers(url)), path


class _Readers(pafs.FSSpecHandler):
    """pyarrow's way to object storage: each request is tried again as ours are. Another process opens its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        super().__init__(locate(url)[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _Readers, (self._url,)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return retried(self._url, lambda: super(_Readers, self).get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return retried(self._url, lambda: super(_Readers, self).get_file_info_selector(selector))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_RangeFile(self.fs, path), mode="r")


class _RangeFile(io.RawIOBase):
    """A remote file that reads exactly the ranges it is asked for."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        self._filesystem, self._path, self._place = filesystem, path, 0
        self._url = url_of(filesystem, path)
        self._size = int(retried(self._url, lambda: filesystem.info(path)["size"]))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        start, end = self._place, self._size if size < 0 else min(self._place + size, self._size)
        if start >= end:
            return b""
        data = retried(self._url, lambda: self._range(start, end))
        self._place = end
        return data

    def _range(self, start: int, end: int) -> bytes:
        data = cast(bytes, self._filesystem.cat_file(self._path, start=start, end=end))
        if len(data) != end - start:
            raise ConnectionError(f"{len(data):,} bytes came instead of {end - start:,}")
        return data
