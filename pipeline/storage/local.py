"""Files of this machine: whole or not at all."""

import errno
import os
import re
import stat
import uuid
from contextlib import suppress
from typing import Final

from pipeline.errors import StorageError

TEMPORARY_NAME: Final = re.compile(r"/\.[^/]+\.[0-9a-f]{32}\.part$")


def list_local_files(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]

    def not_there(error: OSError) -> None:
        """A folder that cannot be read is no empty one: what is in it must not be taken for gone."""
        if not isinstance(error, FileNotFoundError):
            raise error

    return [os.path.join(folder, name) for folder, _, names in os.walk(path, onerror=not_there) for name in names]


def read_local_file(path: str, url: str, max_bytes: int | None) -> bytes:
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


def write_temporary_file(path: str, content: bytes) -> str:
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
    temporary = write_temporary_file(path, content)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def create_local_file(path: str, content: bytes) -> None:
    temporary = write_temporary_file(path, content)
    try:
        os.link(temporary, path)  # fails where the name is taken, and is whole from the first moment
    finally:
        os.unlink(temporary)
