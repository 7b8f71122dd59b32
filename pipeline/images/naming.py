"""File names of images in an output."""

import hashlib
import posixpath
from typing import Final

from pipeline.config import ImageFormat
from pipeline.schema import FILES

_EXTENSIONS: Final[dict[ImageFormat, str]] = {"png": "png", "webp": "webp", "jpeg": "jpg"}


def file_name(row_id: str, image_format: ImageFormat) -> str:
    """Return a file name for a row's image that is valid on any file system."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in row_id).lstrip(".")
    return f"{plain[:120] or 'image'}.{_EXTENSIONS[image_format]}"


def stored_name(row_id: str, source_path: str | None, image_format: ImageFormat) -> str:
    """Return the path, inside the output, of a row's image file.

    It follows the path of the row's source below its root (`source_path`), if the source is a file. The name contains
    a hash of the id, so that two rows with the same source do not overwrite each other's file."""
    digest = hashlib.sha256(row_id.encode()).hexdigest()[:8]
    stem = posixpath.splitext(source_path or file_name(row_id, image_format))[0]
    return f"{FILES}/{stem}-{digest}.{_EXTENSIONS[image_format]}"
