"""The images of an output's rows, which are in its Parquet files or in files of their own.

The path of an image in a file of its own is absolute, or a URL, so that `datasets` opens it from any folder. An output
that was moved or copied is read by the part of the path that is inside the output.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.images.naming import paths_inside


def image_path(output: str, path: str) -> str:
    """Return the `image.path` of the image file at `path` inside the output."""
    return storage.absolute(storage.join(output, path))


def read_image_bytes(output: str, row: Mapping[str, Any]) -> bytes:
    """Return a row's encoded image, empty if the row has none; StorageError if its file cannot be read."""
    image = row.get("image") or {}
    if image.get("bytes") is None and image.get("path"):
        return storage.read_bytes(_file_url(output, image["path"]))
    return image.get("bytes") or b""


def _file_url(output: str, path: str) -> str:
    """Return the URL of the file of a row's `image.path`."""
    urls = [storage.join(output, inside) for inside in paths_inside(path)]
    if path in map(storage.absolute, urls):
        return path
    return next(filter(storage.exists, urls), storage.join(output, path))


def read_image_paths(output: str, file: str) -> list[str]:
    """Return the paths, inside the output, that the images of a data file's rows may have.

    StorageError if the file cannot be read."""
    filesystem, path = storage.arrow_filesystem(storage.join(output, file))
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as parquet:
            if "image" not in parquet.schema_arrow.names:
                return []
            images = parquet.read(columns=["image.path"])["image"].combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise storage.StorageError(f"{file}: cannot be read: {(str(error).splitlines() or [''])[0]}") from error
    return [inside for path in images.field("path").to_pylist() if path is not None for inside in paths_inside(path)]
