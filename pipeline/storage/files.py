"""Reading, writing, listing and deleting files by path or URL. Writes are atomic, and requests are retried."""

import errno
import os
import shutil
from contextlib import suppress
from typing import Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StorageError
from pipeline.storage.filesystem import locate, url_of
from pipeline.storage.local import (
    TEMPORARY_NAME,
    create_local_file,
    list_local_files,
    read_local_file,
    readable_size,
    replace_local_file,
    write_temporary_file,
)
from pipeline.storage.retry import storage_errors, with_retries
from pipeline.storage.s3 import list_s3_files
from pipeline.storage.urls import redact_url


def exists(url: str) -> bool:
    return with_retries(url, lambda: _is_there(url))


def is_folder(url: str) -> bool:
    """Return True if the URL is a folder; on object storage, if there are files below it."""
    filesystem, path = locate(url)
    return with_retries(url, lambda: bool(filesystem.isdir(path)))


def list_files(url: str, suffix: str = "") -> list[str]:
    """Return the URLs of all files below a folder, sorted; local files as plain paths.

    The list is empty if the folder does not exist."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with storage_errors(url):
            paths = list_local_files(path)
    elif "s3" in filesystem.protocol:
        paths = list_s3_files(filesystem, path, url)
    else:
        paths = with_retries(url, lambda: _find_files(filesystem, path))
    return [url_of(filesystem, file) for file in sorted(paths) if file.endswith(suffix) and not file.endswith("/")]


def list_sizes(url: str) -> dict[str, int | None]:
    """Return the size in bytes of each file below a folder by its URL, sorted; None if the file cannot be read."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with storage_errors(url):
            return {file: readable_size(file) for file in sorted(list_local_files(path))}
    found = with_retries(url, lambda: _find_details(filesystem, path))
    sizes = {file: details.get("size") for file, details in found.items() if not file.endswith("/")}
    return {url_of(filesystem, file): size for file, size in sorted(sizes.items())}


def delete_leftovers(url: str) -> None:
    """Delete the unfinished temporary files that killed writers left below a local folder.

    Object storage has none: an upload appears only when it is complete."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with storage_errors(url):
            for file in filter(TEMPORARY_NAME.search, list_local_files(path)):
                with suppress(FileNotFoundError):
                    os.unlink(file)


def read_bytes(url: str, *, max_bytes: int | None = None) -> bytes:
    """Return a file's content. StorageError if it is missing, not a regular file, or larger than `max_bytes`."""
    filesystem, path = locate(url)
    with storage_errors(url):
        if isinstance(filesystem, LocalFileSystem):
            return read_local_file(path, url, max_bytes)
    if max_bytes is not None:
        size = with_retries(url, lambda: filesystem.size(path) or 0)
        if size > max_bytes:
            raise StorageError(f"{redact_url(url)}: {size:,} bytes; at most {max_bytes:,} are read")
    return with_retries(url, lambda: cast(bytes, filesystem.cat_file(path)))


def version_of(url: str) -> str:
    """Return a text that changes when a file does: its size, and its ETag or the time of its last change."""
    filesystem, path = locate(url)
    info = with_retries(url, lambda: filesystem.info(path))
    changed = (info[name] for name in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(name))
    return f"{info.get('size')} {next(changed, '')}"


def write_bytes(url: str, content: bytes, *, fence: str | None = None) -> None:
    """Write a file atomically: readers see either the old content or the new one.

    `fence` is a URL that must not exist; it is asked for before every attempt. StorageError if it exists."""
    filesystem, path = locate(url)

    def write() -> None:
        if fence is not None and _is_there(fence):
            raise StorageError(f"{redact_url(url)}: another run has taken this output over")
        if isinstance(filesystem, LocalFileSystem):
            replace_local_file(path, content)
        else:
            filesystem.pipe_file(path, content)

    with_retries(url, write)


def put_file(path: str, url: str) -> None:
    """Copy a local file of any size to a URL atomically."""
    filesystem, target = locate(url)
    if not isinstance(filesystem, LocalFileSystem):
        with_retries(url, lambda: filesystem.put_file(path, target))
        return
    with storage_errors(url):
        temporary = write_temporary_file(target, b"")
        try:
            shutil.copyfile(path, temporary)
            os.replace(temporary, target)
        except OSError:
            os.unlink(temporary)
            raise


def create_bytes(url: str, content: bytes) -> bool:
    """Create a file if it does not exist, and return True if it now has this content.

    A file that already has the same content counts as created: the reply to an earlier attempt may have been lost."""
    filesystem, path = locate(url)

    def create() -> bool:
        try:
            if isinstance(filesystem, LocalFileSystem):
                create_local_file(path, content)
            else:
                filesystem.pipe_file(path, content, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and error.errno != errno.EINVAL:
                raise
            filesystem.invalidate_cache()
            if not filesystem.exists(path):  # refused for a reason other than that it exists
                raise
            return filesystem.cat_file(path) == content
        return True

    return with_retries(url, create)


def delete(url: str) -> None:
    """Delete one file. A file that does not exist is not an error."""
    filesystem, path = locate(url)

    def remove() -> None:
        with suppress(FileNotFoundError):
            filesystem.rm_file(path)

    with_retries(url, remove)


def _is_there(url: str) -> bool:
    filesystem, path = locate(url)
    return bool(filesystem.exists(path))


def _find_files(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    return list(_find_details(filesystem, path))


def _find_details(filesystem: fsspec.AbstractFileSystem, path: str) -> dict[str, dict[str, Any]]:
    try:
        filesystem.invalidate_cache()
        return cast(dict[str, dict[str, Any]], filesystem.find(path, detail=True))
    except FileNotFoundError:
        return {}
