"""Columns that several stages share: carried columns, ids, and the columns of errors."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import pyarrow as pa

from pipeline.config import Task
from pipeline.errors import describe_error
from pipeline.manifest.arrow_values import column_values, plain_field, rows_to_json
from pipeline.schema import CLASSIFIED, OUTPUT, PARAMETERS, PROVENANCE, SOURCES, seed_type

Report = Callable[[Mapping[str, float]], None]
"""Adds up amounts by name: rows, ok, failed, evaluations, and seconds (`run.rates.SECONDS`)."""

ERRORS: Final[dict[str, pa.DataType]] = {"error_type": pa.string(), "error_message": pa.string()}
"""Null in good rows."""


def carried_columns(manifest: pa.Schema, task: Task = "generate") -> pa.Schema:
    """Return the manifest's columns that go into the output unchanged; views become plain types (`plain_type`)."""
    named = {"id", *SOURCES} if task == "classify" else {"id", *PARAMETERS, *SOURCES}
    return pa.schema([plain_field(field) for field in manifest if field.name not in named])


def provenance_types(manifest: pa.Schema) -> dict[str, pa.DataType]:
    """Return PROVENANCE for a manifest: seeds of 64 unsigned bits stay what they are."""
    return PROVENANCE | {"seed": seed_type(manifest)}


def output_schema(manifest: pa.Schema, task: Task = "generate") -> pa.Schema:
    """Return the columns of an output, with the metadata of the manifest's schema (`output.file_schema`)."""
    own = CLASSIFIED if task == "classify" else {**OUTPUT, **provenance_types(manifest)}
    return pa.schema([*own.items(), *carried_columns(manifest, task)], metadata=manifest.metadata)


def row_ids(table: pa.Table) -> list[str]:
    """Return the rows' ids as text; a row without one gets a hash of its content as id, under which it fails."""
    values = column_values(table["id"])
    ids = [str(value) for value in values]
    for index in [index for index, value in enumerate(values) if value is None]:
        [row] = rows_to_json(table.slice(index, 1))
        ids[index] = f"no-id-{sha256_of(row.encode())[:16]}"
    return ids


def sha256_of(data: bytes) -> str:
    """Return the sha256 of bytes as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def good_rows(table: pa.Table) -> list[int]:
    """Return the indices of the rows without an error."""
    return [index for index, error in enumerate(table["error_type"].to_pylist()) if error is None]


def error_columns(errors: Sequence[Exception | None]) -> dict[str, pa.Array]:
    """Return the columns of ERRORS; None stands for a good row."""
    return _columns([(None, None) if error is None else describe_error(error) for error in errors])


def updated_error_columns(table: pa.Table, errors: Sequence[Exception | None]) -> dict[str, pa.Array]:
    """Return the columns of ERRORS of a table, with the errors of a further stage where they are not None."""
    before = zip(table["error_type"].to_pylist(), table["error_message"].to_pylist(), strict=True)
    pairs = zip(before, errors, strict=True)
    return _columns([pair if error is None else describe_error(error) for pair, error in pairs])


def with_error(row: pa.Table, error: Exception) -> pa.Table:
    """Return a table of one row, marked as failed with `error`."""
    table = row
    for name, column in error_columns([error]).items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def _columns(pairs: Sequence[tuple[str | None, str | None]]) -> dict[str, pa.Array]:
    return {name: pa.array([pair[index] for pair in pairs], ERRORS[name]) for index, name in enumerate(ERRORS)}
