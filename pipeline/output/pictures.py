"""The bytes of a row's picture, wherever its output has them."""

from collections.abc import Mapping
from typing import Any

from pipeline import storage


def picture_bytes(output: str, row: Mapping[str, Any]) -> bytes:
    """The file of a row's picture, wherever its output has it; StorageError if it is nowhere."""
    image = row.get("image") or {}
    if image.get("bytes") is None and image.get("path"):
        return storage.read_bytes(storage.join(output, image["path"]))
    return image.get("bytes") or b""
