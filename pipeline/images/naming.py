"""Where a row's picture is: in its output's Parquet, or in a file of the output that the Parquet names."""

import hashlib
import posixpath
from typing import Final

from pipeline.config import ImageFormat
from pipeline.schema import FILES

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
