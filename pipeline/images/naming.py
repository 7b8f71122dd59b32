"""File names of images in an output."""

import hashlib
import posixpath
from typing import Final

from pipeline.config import ImageFormat
from pipeline.schema import FILES

_EXTENSIONS: Final[dict[ImageFormat, str]] = {"png": "png", "webp": "webp", "jpeg": "jpg"}
_MAX_NAME_BYTES: Final = 180
"""File systems allow 255 bytes for a name; temporary files and other tools' suffixes need some of them."""
_MAX_PATH_BYTES: Final = 700
"""Object storage allows 1024 bytes for a key, the output's own path included."""


def file_name(row_id: str, image_format: ImageFormat) -> str:
    """Return a file name for a row's image that is valid on any file system.

    A name that is not simply the id ends in a hash of it, so that no two ids have the same name."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in row_id).lstrip(".")
    stem = _shortened(plain or "image")
    if stem != row_id:
        stem = f"{stem}-{_digest(row_id)}"
    return f"{stem}.{_EXTENSIONS[image_format]}"


def stored_name(row_id: str, source_path: str | None, image_format: ImageFormat) -> str:
    """Return the path, inside the output, of a row's image file.

    It follows the path of the row's source below its root (`source_path`), if the source is a file. The name contains
    a hash of the id, so that two rows with the same source do not overwrite each other's file."""
    stem = posixpath.splitext(source_path or file_name(row_id, image_format))[0]
    parts = [_shortened(part) for part in stem.split("/")]
    if len("/".join(parts).encode()) > _MAX_PATH_BYTES:
        parts = parts[-1:]
    return f"{FILES}/{'/'.join(parts)}-{_digest(row_id)}.{_EXTENSIONS[image_format]}"


def paths_inside(path: str) -> list[str]:
    """Return the paths, inside an output, that a row's `image.path` may mean; more than one if FILES is in it twice."""
    parts = path.split("/")
    return ["/".join(parts[index:]) for index, part in enumerate(parts) if part == FILES]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shortened(name: str) -> str:
    """Return a name of at most _MAX_NAME_BYTES in UTF-8; one that is longer ends in a hash of the whole."""
    encoded = name.encode()
    if len(encoded) <= _MAX_NAME_BYTES:
        return name
    return f"{encoded[: _MAX_NAME_BYTES - 9].decode(errors='ignore')}-{_digest(name)}"
