"""What a report shows of a row beside its picture: the picture and the mask that it was made from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.errors import ImageError, ManifestError
from pipeline.images.decode import decode_image, decode_mask
from pipeline.manifest.read import read_batches
from pipeline.stages.fetch import source_file


def sources_of(run: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], largest: int) -> dict[str, list[Image.Image]]:
    """By id, what rows of a run were made from: the picture, and the mask if there is one; `largest` pixels a side.

    What cannot be read any more is left out, with no word: the report is of what was made."""
    config = run.get("config", {})
    if "manifest" not in config or not any(row.get("source_sha256") for row in rows):
        return {}
    wanted = {str(row["id"]) for row in rows}
    roots = storage.AllowedRoots(config["manifest"], tuple(config.get("allow_roots", ())))
    found: dict[str, list[Image.Image]] = {}
    with suppress(ManifestError, storage.StorageError):
        for row in _rows(config["manifest"], wanted):
            with suppress(ImageError, storage.StorageError):
                inverted = bool(config.get("defaults", {}).get("mask_invert"))
                found[str(row["id"])] = _pictures(row, roots, largest, inverted=inverted)
    return found


def _rows(manifest: str, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """The manifest's rows of these ids, as long as there are any to come."""
    missing = set(wanted)
    for batch in read_batches(manifest, ["id", "image", "mask"], rows=100):
        ids = [str(value) for value in batch.column("id").to_pylist()]
        for index in [index for index, name in enumerate(ids) if name in missing]:
            missing.discard(ids[index])
            yield batch.slice(index, 1).to_pylist()[0]
        if not missing:
            return


def _pictures(
    row: Mapping[str, Any], roots: storage.AllowedRoots, largest: int, *, inverted: bool
) -> list[Image.Image]:
    pictures = [Image.fromarray(decode_image(source_file(row["image"], roots)[0]))]
    if row.get("mask") is not None:
        levels = decode_mask(source_file(row["mask"], roots)[0])
        pictures.append(Image.fromarray(np.uint8(255) - levels if inverted else levels).convert("RGB"))
    for picture in pictures:
        picture.thumbnail((largest, largest))
    return pictures
