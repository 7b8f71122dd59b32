"""Where a row's picture is: in its output's Parquet, or in a file of the output that the Parquet names."""

import hashlib
import posixpath
from collections.abc import Mapping
from typing import Any, Final

from pipeline import storage
from pipeline.config import ImageFormat

FILES: Final = "files"
"""The folder of an output that holds pictures as files."""

_EXTENSIONS: Final[dict[ImageFormat, str]] = {"png": "png", "webp": "webp", "jpeg": "jpg"}


def file_name(row_id: str, image_format: ImageFormat) -> str:
    """A name for a row's picture that any file system takes."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in row_id).lstrip(".")
    return f"{plain[:120] or 'image'}.{_EXTENSIONS[image_format]}"


def stored_name(row_id: str, place: str | None, image_format: ImageFormat) -> str:
    """The path in an output of a picture's file: as its source's below its root (`place`), if that is a file.

    A hash of the id is part of the name, so that of two rows with one source neither writes over the other's."""
    mark = hashlib.sha256(row_id.encode()).hexdigest()[:8]
    stem = posixpath.splitext(place or file_name(row_id, image_format))[0]
    return f"{FILES}/{stem}-{mark}.{_EXTENSIONS[image_format]}"


def picture_bytes(output: str, row: Mapping[str, Any]) -> bytes:
    """The file of a row's picture, wherever its output has it; StorageError if it is nowhere."""
    image = row.get("image") or {}
    if image.get("bytes") is None and image.get("path"):
        return storage.read_bytes(storage.join(output, image["path"]))
    return image.get("bytes") or b""
