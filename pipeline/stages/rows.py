"""Columns between two stages, and the columns of errors."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from pipeline.config import Task
from pipeline.schema import CLASSIFIED, OUTPUT, PARAMETERS, PROVENANCE, SOURCES

if TYPE_CHECKING:
    pass
from pipeline.errors import describe_error
from pipeline.manifest.identity import row_to_json

Report = Callable[[Mapping[str, float]], None]
"""Where amounts are added up by name: rows, ok, failed, evaluations, and seconds (`rates.SECONDS`)."""

PIXELS: Final = "__pixels"
"""Raw uint8 (height, width, 3) of the row's picture, between the network and the encoder."""
ROW: Final = "__row"
"""The manifest's row as JSON, for the row that fails."""
TAGS: Final = "__tags"
"""What the row's source said beside its pixels, for the encoder; there where a picture is to stay what it is."""
TAGS_TYPE: Final = pa.struct(
    [("icc_profile", pa.binary()), ("exif", pa.binary()), ("dpi", pa.list_(pa.float64())), ("place", pa.string())]
)
"""`place`: where the source's file stands below its root; null where it is no file."""
ERRORS: Final[dict[str, pa.DataType]] = {"error_type": pa.string(), "error_message": pa.string()}


def carried_columns(manifest: pa.Schema, task: Task = "generate") -> pa.Schema:
    """The manifest's columns that go into the output unchanged."""
    named = {"id", *SOURCES} if task == "classify" else {"id", *PARAMETERS, *SOURCES}
    return pa.schema([field for field in manifest if field.name not in named])


def output_schema(manifest: pa.Schema, task: Task = "generate") -> pa.Schema:
    """What a file of OUTPUT/data holds."""
    own = CLASSIFIED if task == "classify" else {**OUTPUT, **PROVENANCE}
    return pa.schema([*own.items(), *carried_columns(manifest, task)])


def row_ids(table: pa.Table) -> list[str]:
    """The rows' ids; a row without one gets a name made of all that it holds, under which it can fail."""
    ids = table["id"].to_pylist()
    for index, row_id in enumerate(ids):
        if row_id is None:
            row = row_to_json(table.slice(index, 1).to_pylist()[0])
            ids[index] = f"no-id-{sha256_of(row.encode())[:16]}"
    return ids


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def nulls(kind: pa.DataType, rows: Sequence[Any]) -> pa.Array:
    return pa.nulls(len(rows), kind)


def error_columns(errors: Sequence[Exception | None]) -> dict[str, pa.Array]:
    pairs = [(None, None) if error is None else describe_error(error) for error in errors]
    return {name: pa.array([pair[place] for pair in pairs], pa.string()) for place, name in enumerate(ERRORS)}
