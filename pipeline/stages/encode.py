"""CPU stage: pixels to image files."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.errors import ImageError
from pipeline.images.encode import encode_image
from pipeline.images.metadata import ImageMetadata
from pipeline.images.naming import file_name, stored_name
from pipeline.schema import IMAGE_TYPE, PARAMETERS, PROVENANCE

if TYPE_CHECKING:
    pass
from pipeline.errors import describe_error
from pipeline.stages.rows import ERRORS, PIXELS, ROW, TAGS, Report, carried_columns, sha256_of


@dataclass(frozen=True, kw_only=True)
class EncodeImages:
    """CPU stage: pixels to files, hashed. Gives OUTPUT's columns, PROVENANCE's, what is carried, ROW and ERRORS."""

    config: RunConfig
    manifest: pa.Schema
    report: Report | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
        encoded: list[bytes | None] = []
        errors = list(zip(table["error_type"].to_pylist(), table["error_message"].to_pylist(), strict=True))
        for index, row in enumerate(table.drop_columns([PIXELS, ROW]).to_pylist()):
            data, pixels = None, table[PIXELS][index]
            try:
                data = self._encode(pixels, row) if pixels.is_valid else None
            except ImageError as error:
                errors[index] = describe_error(error)
            encoded.append(data)
        places = self._places(table)
        images_of = [
            None if data is None else {"bytes": data, "path": path} for path, data in zip(places, encoded, strict=True)
        ]
        columns: dict[str, Any] = {
            "id": table["id"],
            "image": pa.array(images_of, IMAGE_TYPE),
            "width": table["width"],
            "height": table["height"],
            "format": pa.repeat(pa.scalar(self.config.format), table.num_rows),
            "sha256": pa.array([None if data is None else sha256_of(data) for data in encoded], pa.string()),
        }
        columns |= {name: table[name] for name in (*PROVENANCE, *carried_columns(self.manifest).names, ROW)}
        columns |= {name: pa.array([pair[place] for pair in errors], pa.string()) for place, name in enumerate(ERRORS)}
        if self.report is not None:
            self.report({"encode_seconds": time.perf_counter() - started})
        return pa.table(columns)

    def _places(self, table: pa.Table) -> list[str]:
        """The names of the rows' pictures: their own, or the places of their files in the output."""
        ids = table["id"].to_pylist()
        if self.config.store == "parquet":
            return [file_name(row_id, self.config.format) for row_id in ids]
        tags = table[TAGS].to_pylist()
        found = [tag and tag["place"] for tag in tags]
        return [stored_name(row_id, place, self.config.format) for row_id, place in zip(ids, found, strict=True)]

    def _encode(self, pixels: pa.Scalar, row: Mapping[str, Any]) -> bytes:
        values = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(row["height"], row["width"], -1)
        settings = {name: row[name] for name in PARAMETERS if row[name] is not None}
        metadata = {"Software": "latentmill", "parameters": json.dumps(settings, ensure_ascii=False)}
        found = row.get(TAGS)
        dpi = found and found["dpi"]
        tags = found and ImageMetadata(
            icc_profile=found["icc_profile"], exif=found["exif"], dpi=(dpi[0], dpi[1]) if dpi else None
        )
        return encode_image(values, self.config.format, quality=self.config.quality, metadata=metadata, tags=tags)
