"""Local files, written atomically."""

import errno
import os
import re
import stat
import uuid
from contextlib import suppress
from typing import Final

from pipeline.errors import StorageError

TEMPORARY_NAME: Final = re.compile(r"/\.[^/]+\.[0-9a-f]{32}\.part$")
"""The names that `write_temporary_file` gives."""


def list_local_files(path: str) -> list[str]:
    """Return the paths of all files below a folder; none if it does not exist."""
    if os.path.isfile(path):
        return [path]

    def raise_unless_missing(error: OSError) -> None:
        """Raise for a folder that cannot be read: it must not look empty."""
        if not isinstance(error, FileNotFoundError):
            raise error

    walk = os.walk(path, onerror=raise_unless_missing)
    return [os.path.join(folder, name) for folder, _, names in walk for name in names]


def readable_size(path: str) -> int | None:
    """Return the size in bytes of a regular file that may be read, else None."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK) else None


def read_local_file(path: str, url: str, max_bytes: int | None) -> bytes:
    """Return the content of a regular file. StorageError if it is another kind of file or over `max_bytes`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block the actor
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{url}: not a regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise StorageError(f"{url}: {status.st_size:,} bytes; at most {max_bytes:,} are read")
        return file.read() if max_bytes is None else file.read(max_bytes)


def write_temporary_file(path: str, content: bytes) -> str:
    """Write a temporary file beside `path`, flush it to disk, and return its path."""
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


def replace_local_file(path: str, content: bytes) -> None:
    """Write a file, replacing an existing one atomically."""
    temporary = write_temporary_file(path, content)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def create_local_file(path: str, content: bytes) -> None:
    """Write a new file atomically. FileExistsError if the path exists."""
    temporary = write_temporary_file(path, content)
    try:
        os.link(temporary, path)  # fails if the path exists, and never shows a partial file
    finally:
        os.unlink(temporary)
