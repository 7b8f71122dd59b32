"""Read the source images of a run's rows, which the report displays beside the output."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.errors import ImageError, ManifestError
from pipeline.images.decode import decode_image, decode_mask
from pipeline.manifest.read import read_batches
from pipeline.stages.fetch import SourceReader


def read_sources(
    run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], max_size: int
) -> dict[str, list[Image.Image]]:
    """Return the source image of each row, and its mask if it has one, by id; the longer side is at most `max_size`.

    A source that can no longer be read is omitted without an error, since the report describes the output."""
    config = run.get("config", {})
    if "manifest" not in config or not any(row.get("source_sha256") for row in rows):
        return {}
    ids = {str(row["id"]) for row in rows}
    reader = SourceReader(storage.AllowedRoots(config["manifest"], tuple(config.get("allow_roots", ()))))
    mask_invert = bool(config.get("defaults", {}).get("mask_invert"))
    sources: dict[str, list[Image.Image]] = {}
    with suppress(ManifestError, storage.StorageError):
        for row in _read_rows(config["manifest"], ids):
            with suppress(ImageError, storage.StorageError):
                sources[str(row["id"])] = _decode_sources(row, reader, max_size, mask_invert=mask_invert)
    return sources


def _read_rows(manifest: str, ids: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the manifest's rows with these ids; stops reading after the last of them."""
    missing = set(ids)
    for batch in read_batches(manifest, ["id", "image", "mask"], rows=100):
        batch_ids = [str(value) for value in batch.column("id").to_pylist()]
        for index in [index for index, row_id in enumerate(batch_ids) if row_id in missing]:
            missing.discard(batch_ids[index])
            yield batch.slice(index, 1).to_pylist()[0]
        if not missing:
            return


def _decode_sources(
    row: Mapping[str, Any], reader: SourceReader, max_size: int, *, mask_invert: bool
) -> list[Image.Image]:
    images = [Image.fromarray(decode_image(reader.read(row["image"])[0]))]
    if row.get("mask") is not None:
        mask = decode_mask(reader.read(row["mask"])[0])
        images.append(Image.fromarray(np.uint8(255) - mask if mask_invert else mask).convert("RGB"))
    for image in images:
        image.thumbnail((max_size, max_size))
    return images
