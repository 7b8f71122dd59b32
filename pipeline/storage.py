"""Local paths and object storage by URL: small reads, atomic small writes, listings, and which roots may be read.

Keys and endpoints come from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...) and are never put into a
message. Everything that fails raises StorageError, whose text is one line for the person who gave the URL.
"""

import errno
import io
import os
import posixpath
import random
import re
import shutil
import stat
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.implementations.local import LocalFileSystem

Answer = TypeVar("Answer")

SCHEMES: Final[dict[str, str]] = {
    "file": "file",
    "local": "file",
    "memory": "memory",
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "abfs",
    "abfs": "abfs",
    "abfss": "abfs",
    "hf": "hf",
}
"""URL schemes, and fsspec's name for what serves them."""

_PACKAGES: Final = {"gs": "gcsfs", "abfs": "adlfs", "s3": "s3fs", "hf": "huggingface_hub"}
_CLIENTS: Final = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure")
"""Packages whose exceptions are about storage, and not OSErrors."""
_S3_CONFIG: Final[dict[str, Any]] = {
    "connect_timeout": 15,
    "read_timeout": 120,
    "retries": {"total_max_attempts": 1, "mode": "standard"},  # retries are ours: counted, and the same for all storage
}
_ATTEMPTS: Final = 8
_FIRST_WAIT: Final = 0.5
"""Seconds before the second attempt; each further wait is twice as long, and jitter takes up to half of it."""
_PASSING_ERRNOS: Final = frozenset(
    (errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE)
)
_PASSING_KINDS: Final = re.compile("Timeout|Connect|IncompleteRead|ResponseStreaming|Disconnected|Payload|HTTPClient")
_PASSING_TEXTS: Final = re.compile(
    r"SlowDown|InternalError|Internal Server Error|ServiceUnavailable|RequestTimeout|TooManyRequests|\((5\d\d|429)\)"
    "|reduce your request rate|max retries|IncompleteBody|BadDigest",
    re.IGNORECASE,
)
_PAGE: Final = 1000
"""Names that an S3 server lists at once; it gives no more."""
_TEMPORARY: Final = re.compile(r"/\.[^/]+\.[0-9a-f]{32}\.part$")
_faults: Counter[str] = Counter()


class StorageError(OSError):
    """A path or URL that cannot be used; the text is one line without secrets."""


class StorageUnavailableError(StorageError):
    """Storage that did not serve a request in _ATTEMPTS attempts: no row is to blame."""


def taken_faults() -> dict[str, int]:
    """The faults of storage in this process since the last call: `storage_retries`."""
    taken = dict(_faults)
    _faults.clear()
    return taken


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem that serves a path or URL, and its path there (absolute, without a trailing slash)."""
    scheme, rest = _split(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    filesystem = _filesystem(scheme, endpoint if scheme == "s3" else None)
    if scheme == "file":
        return filesystem, os.path.abspath(os.path.expanduser(rest)) if rest else os.getcwd()
    path = str(filesystem._strip_protocol(url)).rstrip("/")
    if not path.strip("/"):
        raise StorageError(f"{shown(url)}: names no bucket or folder")
    return filesystem, path


def arrow_filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """The same for pyarrow's readers (pyarrow's own S3 filesystem ignores AWS_ENDPOINT_URL)."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        return pafs.LocalFileSystem(), path
    return pafs.PyFileSystem(_Readers(url)), path


def is_local(url: str) -> bool:
    return _split(url)[0] == "file"


def join(url: str, *parts: str) -> str:
    """A path below a folder's URL: `join("s3://b/run", "data", "x.parquet")`."""
    return "/".join((url.rstrip("/"), *(part.strip("/") for part in parts)))


def parent(url: str) -> str:
    """The folder that holds a file or folder."""
    if "://" not in url:
        return os.path.dirname(os.path.abspath(os.path.expanduser(url)))
    return url.rstrip("/").rpartition("/")[0]


def shown(url: str) -> str:
    """A URL as it may stand in a message: without a user, a password or a signed query."""
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"


def exists(url: str) -> bool:
    filesystem, path = locate(url)
    return _retried(url, lambda: bool(filesystem.exists(path)))


def is_folder(url: str) -> bool:
    """Whether something lies below the URL (object storage has no folders of its own)."""
    filesystem, path = locate(url)
    return _retried(url, lambda: bool(filesystem.isdir(path)))


def list_files(url: str, suffix: str = "") -> list[str]:
    """Every file below a folder, as URLs (plain paths where the folder was one), sorted; none if it is not there."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with _one_line(url):
            paths = _local_files(path)
    elif "s3" in filesystem.protocol:
        paths = _s3_files(filesystem, path, url)
    else:
        paths = _retried(url, lambda: _found_files(filesystem, path))
    return [_url_of(filesystem, found) for found in sorted(paths) if found.endswith(suffix) and not found.endswith("/")]


def delete_leftovers(url: str) -> None:
    """Delete what a killed writer left below a folder: files that were never whole. Object storage has none."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with _one_line(url):
            for found in filter(_TEMPORARY.search, _local_files(path)):
                with suppress(FileNotFoundError):
                    os.unlink(found)


def read_bytes(url: str, *, max_bytes: int | None = None) -> bytes:
    """A file's content; StorageError if it is larger than `max_bytes`, missing, or no regular file."""
    filesystem, path = locate(url)
    with _one_line(url):
        if isinstance(filesystem, LocalFileSystem):
            return _read_local(path, url, max_bytes)
    if max_bytes is not None:
        size = _retried(url, lambda: filesystem.size(path) or 0)
        if size > max_bytes:
            raise StorageError(f"{shown(url)}: {size:,} bytes; at most {max_bytes:,} are read")
    return _retried(url, lambda: cast(bytes, filesystem.cat_file(path)))


def write_bytes(url: str, content: bytes) -> None:
    """Write a whole file so that readers see the old one or the new one: a single PUT, or a replaced local file."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with _one_line(url):
            _replace_local(path, content)
    else:
        _retried(url, lambda: filesystem.pipe_file(path, content))


def put_file(path: str, url: str) -> None:
    """Bring a local file of any size to a URL, where it is there whole or not at all."""
    filesystem, target = locate(url)
    if not isinstance(filesystem, LocalFileSystem):
        _retried(url, lambda: filesystem.put_file(path, target))
        return
    with _one_line(url):
        temporary = _temporary_beside(target, b"")
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, target)
        except OSError:
            os.unlink(temporary)
            raise


def create_bytes(url: str, content: bytes) -> bool:
    """Write a file only if there is none yet: whether it is ours (the same content counts: a reply can get lost)."""
    filesystem, path = locate(url)

    def create() -> bool:
        try:
            if isinstance(filesystem, LocalFileSystem):
                _create_local(path, content)
            else:
                filesystem.pipe_file(path, content, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and error.errno != errno.EINVAL:
                raise
            filesystem.invalidate_cache()
            if not filesystem.exists(path):  # refused for another reason than being there
                raise
            return filesystem.cat_file(path) == content
        return True

    return _retried(url, create)


def delete(url: str) -> None:
    """Delete one file; one that is gone already is no error."""
    filesystem, path = locate(url)

    def remove() -> None:
        with suppress(FileNotFoundError):
            filesystem.rm_file(path)

    _retried(url, remove)


class _Readers(pafs.FSSpecHandler):
    """pyarrow's way to object storage: each request is tried again as ours are. Another process opens its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        super().__init__(locate(url)[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return _Readers, (self._url,)

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return _retried(self._url, lambda: super(_Readers, self).get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return _retried(self._url, lambda: super(_Readers, self).get_file_info_selector(selector))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(_RangeFile(self.fs, path), mode="r")


class _RangeFile(io.RawIOBase):
    """A remote file that reads exactly the ranges it is asked for."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        self._filesystem, self._path, self._place = filesystem, path, 0
        self._url = _url_of(filesystem, path)
        self._size = int(_retried(self._url, lambda: filesystem.info(path)["size"]))

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
        data = _retried(self._url, lambda: self._range(start, end))
        self._place = end
        return data

    def _range(self, start: int, end: int) -> bytes:
        data = cast(bytes, self._filesystem.cat_file(self._path, start=start, end=end))
        if len(data) != end - start:
            raise ConnectionError(f"{len(data):,} bytes came instead of {end - start:,}")
        return data


def _retried(url: str, action: Callable[[], Answer]) -> Answer:
    """What `action` gives, after faults that pass; StorageUnavailableError when they do not."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if not _passes(error):
                with _one_line(url):
                    raise
            _faults["storage_retries"] += 1
            if attempt == _ATTEMPTS:
                reason = f"{_reason(error)} ({_ATTEMPTS} attempts)"
                raise StorageUnavailableError(f"{shown(url)}: {reason}") from error
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1))
    raise AssertionError("unreachable")


def _passes(error: Exception) -> bool:
    """Whether a fault of storage may be gone at the next attempt: overload, a server's error, a line that was cut."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | StorageError):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _PASSING_ERRNOS:
        return True
    return bool(_PASSING_KINDS.search(type(error).__name__) or _PASSING_TEXTS.search(str(error)))


@contextmanager
def _one_line(url: str) -> Iterator[None]:
    """Turn what storage clients raise into one StorageError that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise StorageError(f"{shown(url)}: {_reason(error)}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        raise StorageError(f"{shown(url)}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return (
            "the bucket does not exist"
            if "bucket does not exist" in text.lower()
            else "there is no such file or folder"
        )
    if isinstance(error, PermissionError):
        return "access is denied; check the credentials in the environment and their rights"
    if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an instance's role"
    if kind in ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ClientConnectorError"):
        return "the storage server does not answer; check AWS_ENDPOINT_URL and the network"
    if isinstance(error, IsADirectoryError):
        return "is a folder; a file is needed"
    if isinstance(error, OSError) and error.errno and error.strerror:
        return error.strerror.splitlines()[0]
    return text or kind


def _split(url: str) -> tuple[str, str]:
    """The scheme (fsspec's name) and what follows it; a path without a scheme is a local one."""
    if "\0" in url or "::" in url:
        raise StorageError(f"{shown(url)!r}: no path or URL that can be used")
    if "://" not in url:
        return "file", url
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in SCHEMES:
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "hf", "file", "memory"))
        raise StorageError(f"{shown(url)}: cannot use {scheme}:// URLs; use a local path or one of {known}")
    return SCHEMES[scheme.lower()], rest


@lru_cache
def _filesystem(scheme: str, endpoint: str | None) -> fsspec.AbstractFileSystem:
    try:
        if scheme != "s3":
            return fsspec.filesystem(scheme)
        filesystem = fsspec.filesystem("s3", endpoint_url=endpoint, use_listings_cache=False, config_kwargs=_S3_CONFIG)
        filesystem.retries = 1
        with _one_line("s3://"):
            _send_no_expect_header(filesystem)
            _read_times_fast(filesystem)
    except ImportError as error:
        raise StorageError(
            f"{scheme}:// needs a package that is not installed: pip install {_PACKAGES[scheme]}"
        ) from error
    return filesystem


def _send_no_expect_header(filesystem: Any) -> None:
    """A PUT that announces itself by `Expect: 100-continue` hangs on servers that never answer it."""
    from botocore.handlers import add_expect_header

    filesystem.s3.meta.events.unregister("before-call.s3", add_expect_header)


def _read_times_fast(filesystem: Any) -> None:
    """botocore takes times in any form, and spends three quarters of a long listing with those of the files."""
    from botocore.utils import parse_timestamp

    def time_of(text: str) -> datetime:
        try:
            return datetime.fromisoformat(text)
        except (TypeError, ValueError):
            return parse_timestamp(text)

    filesystem.session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=time_of)


def _local_files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]

    def not_there(error: OSError) -> None:
        """A folder that cannot be read is no empty one: what is in it must not be taken for gone."""
        if not isinstance(error, FileNotFoundError):
            raise error

    return [os.path.join(folder, name) for folder, _, names in os.walk(path, onerror=not_there) for name in names]


def _found_files(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    try:
        filesystem.invalidate_cache()
        return cast(list[str], filesystem.find(path))
    except FileNotFoundError:
        return []


def _s3_files(filesystem: Any, path: str, url: str) -> list[str]:
    """Page by page; where one page does not hold all, from several places of the names at once."""
    bucket, _, key = path.partition("/")
    prefix = f"{key}/" if key else ""

    def page(after: str) -> tuple[list[str], bool]:
        """The names that come next, and whether there are more."""
        found = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=_PAGE)
        return [item["Key"] for item in found.get("Contents", ())], found.get("IsTruncated", False)

    def names(after: str, last: str | None) -> list[str]:
        """From a place on, up to another."""
        found: list[str] = []
        more = True
        while more:
            part, more = _retried(url, lambda after=after: page(after))
            found += part if last is None else [name for name in part if name <= last]
            after = part[-1] if part else after
            more = more and (last is None or after <= last)
        return found

    try:
        found, more = _retried(url, lambda: page(prefix))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return []
        raise
    if more:
        places = [found[-1], *(place for digit in "123456789abcdef" if (place := prefix + digit) > found[-1])]
        with ThreadPoolExecutor(len(places)) as pool:
            for part in pool.map(names, places, [*places[1:], None]):
                found += part
    if not found and key and exists(url):
        return [path]
    return [f"{bucket}/{name}" for name in found]


def _url_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    return path if isinstance(filesystem, LocalFileSystem) else filesystem.unstrip_protocol(path)


def _read_local(path: str, url: str, max_bytes: int | None) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block the actor
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{url}: is no regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise StorageError(f"{url}: {status.st_size:,} bytes; at most {max_bytes:,} are read")
        return file.read() if max_bytes is None else file.read(max_bytes)


def _temporary_beside(path: str, content: bytes) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return temporary


def _replace_local(path: str, content: bytes) -> None:
    temporary = _temporary_beside(path, content)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _create_local(path: str, content: bytes) -> None:
    temporary = _temporary_beside(path, content)
    try:
        os.link(temporary, path)  # fails where the name is taken, and is whole from the first moment
    finally:
        os.unlink(temporary)


class AllowedRoots:
    """The folders from which a manifest's pictures may be read: its own, and those that the run was given."""

    def __init__(self, manifest: str, allow_roots: tuple[str, ...] = ()) -> None:
        self.base = manifest if not _looks_like_file(manifest) else parent(manifest)
        self.roots = tuple(_canonical(root) for root in (self.base, *allow_roots))

    def resolve(self, reference: str) -> str:
        """The URL (or real local path) that a manifest's reference means; StorageError where it may not be read.

        A relative one is below the manifest's folder. `..`, symbolic links that lead out, and other schemes or
        buckets are refused."""
        if not reference.strip():
            raise StorageError("an empty path")
        absolute = "://" in reference or (reference.startswith("/") and is_local(self.base))
        url = reference if absolute else join(self.base, reference)
        if ".." in reference.split("/"):
            raise StorageError(f"{shown(reference)}: may not hold '..'")
        scheme, path = _canonical(url)
        if self._below(scheme, path) is not None:
            return path if scheme == "file" else url
        raise StorageError(f"{shown(reference)}: not below the manifest's folder or a folder given by --allow-root")

    def place(self, url: str) -> str:
        """Where what `resolve` gave stands below its root: `shelf/a.png`."""
        scheme, path = _canonical(url)
        root = self._below(scheme, path)
        return posixpath.basename(path) if root is None else path.removeprefix(root).lstrip("/")

    def _below(self, scheme: str, path: str) -> str | None:
        """The root that holds a path."""
        for root_scheme, root in self.roots:
            if scheme == root_scheme and (path == root or path.startswith(root.rstrip("/") + "/")):
                return root
        return None


def is_below(url: str, folder: str) -> bool:
    """Whether a file is in a folder or below it, symbolic links followed."""
    scheme, path = _canonical(url)
    folder_scheme, root = _canonical(folder)
    return scheme == folder_scheme and path.startswith(root.rstrip("/") + "/")


def _looks_like_file(url: str) -> bool:
    return posixpath.splitext(urlsplit(url).path if "://" in url else url)[1] != "" and not (
        is_local(url) and os.path.isdir(locate(url)[1])
    )


def _canonical(url: str) -> tuple[str, str]:
    """The scheme and the path that a URL comes to, symbolic links followed."""
    scheme, path = _split(url)[0], locate(url)[1]
    return scheme, os.path.realpath(path) if scheme == "file" else path
