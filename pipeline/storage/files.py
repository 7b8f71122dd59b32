"""Local paths and object storage by URL: small reads, atomic small writes, listings, and which roots may be read.

Keys and endpoints come from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...) and are never put into a
message. Everything that fails raises StorageError, whose text is one line for the person who gave the URL.
"""

import errno
import os
import shutil
from contextlib import suppress
from typing import cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StorageError
from pipeline.storage.filesystem import locate, url_of
from pipeline.storage.local import (
    TEMPORARY_NAME,
    create_local_file,
    list_local_files,
    read_local_file,
    replace_local_file,
    write_temporary_file,
)
from pipeline.storage.retry import retried, storage_errors
from pipeline.storage.s3 import list_s3_files
from pipeline.storage.urls import redact_url


def exists(url: str) -> bool:
    filesystem, path = locate(url)
    return retried(url, lambda: bool(filesystem.exists(path)))


def is_folder(url: str) -> bool:
    """Whether something lies below the URL (object storage has no folders of its own)."""
    filesystem, path = locate(url)
    return retried(url, lambda: bool(filesystem.isdir(path)))


def list_files(url: str, suffix: str = "") -> list[str]:
    """Every file below a folder, as URLs (plain paths where the folder was one), sorted; none if it is not there."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with storage_errors(url):
            paths = list_local_files(path)
    elif "s3" in filesystem.protocol:
        paths = list_s3_files(filesystem, path, url)
    else:
        paths = retried(url, lambda: _found_files(filesystem, path))
    return [url_of(filesystem, found) for found in sorted(paths) if found.endswith(suffix) and not found.endswith("/")]


def delete_leftovers(url: str) -> None:
    """Delete what a killed writer left below a folder: files that were never whole. Object storage has none."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with storage_errors(url):
            for found in filter(TEMPORARY_NAME.search, list_local_files(path)):
                with suppress(FileNotFoundError):
                    os.unlink(found)


def read_bytes(url: str, *, max_bytes: int | None = None) -> bytes:
    """A file's content; StorageError if it is larger than `max_bytes`, missing, or no regular file."""
    filesystem, path = locate(url)
    with storage_errors(url):
        if isinstance(filesystem, LocalFileSystem):
            return read_local_file(path, url, max_bytes)
    if max_bytes is not None:
        size = retried(url, lambda: filesystem.size(path) or 0)
        if size > max_bytes:
            raise StorageError(f"{redact_url(url)}: {size:,} bytes; at most {max_bytes:,} are read")
    return retried(url, lambda: cast(bytes, filesystem.cat_file(path)))


def write_bytes(url: str, content: bytes) -> None:
    """Write a whole file so that readers see the old one or the new one: a single PUT, or a replaced local file."""
    filesystem, path = locate(url)
    if isinstance(filesystem, LocalFileSystem):
        with storage_errors(url):
            replace_local_file(path, content)
    else:
        retried(url, lambda: filesystem.pipe_file(path, content))


def put_file(path: str, url: str) -> None:
    """Bring a local file of any size to a URL, where it is there whole or not at all."""
    filesystem, target = locate(url)
    if not isinstance(filesystem, LocalFileSystem):
        retried(url, lambda: filesystem.put_file(path, target))
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
    """Write a file only if there is none yet: whether it is ours (the same content counts: a reply can get lost)."""
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
            if not filesystem.exists(path):  # refused for another reason than being there
                raise
            return filesystem.cat_file(path) == content
        return True

    return retried(url, create)


def delete(url: str) -> None:
    """Delete one file; one that is gone already is no error."""
    filesystem, path = locate(url)

    def remove() -> None:
        with suppress(FileNotFoundError):
            filesystem.rm_file(path)

    retried(url, remove)


def _found_files(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    try:
        filesystem.invalidate_cache()
        return cast(list[str], filesystem.find(path))
    except FileNotFoundError:
        return []
