"""CPU stage: pixels to image files."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.errors import ImageError
from pipeline.images.encode import encode_image
from pipeline.images.metadata import ImageMetadata
from pipeline.images.naming import file_name, stored_name
from pipeline.schema import IMAGE_TYPE, OUTPUT, PARAMETERS, PIXELS, PROVENANCE, ROW, SOURCE_METADATA
from pipeline.stages.contract import StageColumns, run_stage
from pipeline.stages.rows import ERRORS, Report, carried_columns, sha256_of, updated_error_columns


@dataclass(frozen=True, kw_only=True)
class EncodeImages:
    """CPU stage: encodes and hashes the images. Returns OUTPUT, PROVENANCE, the carried columns, ROW and ERRORS."""

    config: RunConfig
    manifest: pa.Schema
    report: Report | None = None

    @property
    def columns(self) -> StageColumns:
        carried = carried_columns(self.manifest).names
        needs = {"id", "width", "height", PIXELS, ROW, *PROVENANCE, *carried, *ERRORS}
        return StageColumns(
            needs=frozenset(needs), adds=frozenset(OUTPUT), removes=frozenset({PIXELS, SOURCE_METADATA})
        )

    def stopping(self) -> bool:
        return False

    def __call__(self, table: pa.Table) -> pa.Table:
        return run_stage(self, self._process, table)

    def _process(self, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
        encoded: list[bytes | None] = []
        errors: list[Exception | None] = []
        for index, row in enumerate(table.drop_columns([PIXELS, ROW]).to_pylist()):
            data = error = None
            try:
                data = self._encode(table[PIXELS][index], row) if table[PIXELS][index].is_valid else None
            except ImageError as reason:
                error = reason
            encoded.append(data)
            errors.append(error)
        columns: dict[str, Any] = {name: table[name] for name in ("id", "width", "height")}
        columns["image"] = _image_column(encoded, self._paths(table))
        columns["format"] = pa.repeat(pa.scalar(self.config.format), table.num_rows)
        hashes = [None if data is None else sha256_of(data) for data in encoded]
        columns["sha256"] = pa.array(hashes, pa.string())
        columns = {name: columns[name] for name in OUTPUT}
        columns |= {name: table[name] for name in (*PROVENANCE, *carried_columns(self.manifest).names, ROW)}
        columns |= updated_error_columns(table, errors)
        if self.report is not None:
            self.report({"encode_seconds": time.perf_counter() - started})
        return pa.table(columns)

    def _paths(self, table: pa.Table) -> list[str]:
        """Return the file names of the rows' images, or their paths in the output where they are stored as files."""
        ids = table["id"].to_pylist()
        if self.config.store == "parquet":
            return [file_name(row_id, self.config.format) for row_id in ids]
        sources = [metadata and metadata["path"] for metadata in table[SOURCE_METADATA].to_pylist()]
        return [stored_name(row_id, path, self.config.format) for row_id, path in zip(ids, sources, strict=True)]

    def _encode(self, pixels: pa.Scalar, row: Mapping[str, Any]) -> bytes:
        values = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(row["height"], row["width"], -1)
        parameters = {name: row[name] for name in PARAMETERS if row[name] is not None}
        text = {"Software": "latentmill", "parameters": json.dumps(parameters, ensure_ascii=False)}
        source = _image_metadata(row.get(SOURCE_METADATA))
        return encode_image(values, self.config.format, quality=self.config.quality, metadata=text, tags=source)


def _image_metadata(values: Mapping[str, Any] | None) -> ImageMetadata | None:
    if values is None:
        return None
    dpi = (values["dpi"][0], values["dpi"][1]) if values["dpi"] else None
    return ImageMetadata(icc_profile=values["icc_profile"], exif=values["exif"], dpi=dpi)


def _image_column(encoded: Sequence[bytes | None], paths: Sequence[str]) -> pa.Array:
    pairs = zip(encoded, paths, strict=True)
    return pa.array([None if data is None else {"bytes": data, "path": path} for data, path in pairs], IMAGE_TYPE)
