"""Read the image of an output row, which is in its Parquet file or in a file of its own."""

from collections.abc import Mapping
from typing import Any

from pipeline import storage


def read_image_bytes(output: str, row: Mapping[str, Any]) -> bytes:
    """Return a row's encoded image, empty if the row has none; StorageError if its file cannot be read."""
    image = row.get("image") or {}
    if image.get("bytes") is None and image.get("path"):
        return storage.read_bytes(storage.join(output, image["path"]))
    return image.get("bytes") or b""
