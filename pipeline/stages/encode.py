"""CPU stage: pixels to image files."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.errors import attempt
from pipeline.images.encode import encode_image
from pipeline.images.metadata import ImageMetadata
from pipeline.images.naming import file_name, stored_name
from pipeline.schema import IMAGE_TYPE, OUTPUT, PARAMETERS, PIXELS, PROVENANCE, ROW, SOURCE_METADATA, seed_type
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
        adds = {**OUTPUT, "seed": seed_type(self.manifest)}
        return StageColumns(needs=frozenset(needs), adds=adds, removes=frozenset({PIXELS, SOURCE_METADATA}))

    def stopping(self) -> bool:
        return False

    def __call__(self, table: pa.Table) -> pa.Table:
        return run_stage(self, self._process, table)

    def _process(self, table: pa.Table) -> pa.Table:
        started = time.perf_counter()
        parameters = {name: table[name].to_pylist() for name in PARAMETERS}
        images: list[dict[str, Any] | None] = []
        errors: list[Exception | None] = []
        for index in range(table.num_rows):
            row = {name: values[index] for name, values in parameters.items()}
            image = attempt(lambda row=row, index=index: self._image(table, index, row))
            images.append(None if isinstance(image, Exception) else image)
            errors.append(image if isinstance(image, Exception) else None)
        columns: dict[str, Any] = {name: table[name] for name in table.column_names}
        columns["seed"] = table["seed"].cast(seed_type(self.manifest))
        columns["image"] = pa.array(images, IMAGE_TYPE)
        columns["format"] = pa.repeat(pa.scalar(self.config.format), table.num_rows)
        hashes = [None if image is None else sha256_of(image["bytes"]) for image in images]
        columns["sha256"] = pa.array(hashes, pa.string())
        columns |= updated_error_columns(table, errors)
        if self.report is not None:
            self.report({"encode_seconds": time.perf_counter() - started})
        return pa.table(columns).drop_columns([name for name in self.columns.removes if name in columns])

    def _image(self, table: pa.Table, index: int, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a row's encoded image and its path; None if it has no pixels."""
        pixels = table[PIXELS][index]
        if not pixels.is_valid:
            return None
        source = table[SOURCE_METADATA][index].as_py() if SOURCE_METADATA in table.column_names else None
        name = file_name(table["id"][index].as_py(), self.config.format)
        if self.config.store == "files":
            name = stored_name(table["id"][index].as_py(), source and source["path"], self.config.format)
        return {"bytes": self._encode(pixels, parameters, source), "path": name}

    def _encode(self, pixels: pa.Scalar, row: Mapping[str, Any], source: Mapping[str, Any] | None) -> bytes:
        values = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(row["height"], row["width"], -1)
        parameters = {name: value for name, value in row.items() if value is not None}
        text = {"Software": "latentmill", "parameters": json.dumps(parameters, ensure_ascii=False)}
        tags = _image_metadata(source)
        return encode_image(values, self.config.format, quality=self.config.quality, metadata=text, tags=tags)


def _image_metadata(values: Mapping[str, Any] | None) -> ImageMetadata | None:
    if values is None:
        return None
    dpi = (values["dpi"][0], values["dpi"][1]) if values["dpi"] else None
    return ImageMetadata(icc_profile=values["icc_profile"], exif=values["exif"], dpi=dpi)
