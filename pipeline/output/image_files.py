"""Read the image of an output row, which is in its Parquet file or in a file of its own."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage


def read_image_bytes(output: str, row: Mapping[str, Any]) -> bytes:
    """Return a row's encoded image, empty if the row has none; StorageError if its file cannot be read."""
    image = row.get("image") or {}
    if image.get("bytes") is None and image.get("path"):
        return storage.read_bytes(storage.join(output, image["path"]))
    return image.get("bytes") or b""


def read_image_paths(output: str, file: str) -> list[str]:
    """Return the paths, inside the output, of the images of a data file's rows. StorageError if it cannot be read."""
    filesystem, path = storage.arrow_filesystem(storage.join(output, file))
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as parquet:
            if "image" not in parquet.schema_arrow.names:
                return []
            images = parquet.read(columns=["image.path"])["image"].combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise storage.StorageError(f"{file}: cannot be read: {(str(error).splitlines() or [''])[0]}") from error
    return [path for path in images.field("path").to_pylist() if path is not None]
