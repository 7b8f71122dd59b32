"""Sources of manifests: CSV, JSONL, text and Parquet files.

A source knows its columns before its rows are read, so that rows can be written while they are read.
"""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import BuildError
from pipeline.manifest.arrow_values import column_values
from pipeline.manifest.read import read_batches, read_schema
from pipeline.manifest.unify import HUGGING_FACE, features_of
from pipeline.manifest.values import as_column_type, column_type, convert_value, wider_type
from pipeline.schema import PARAMETERS, SOURCES, seed_type

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The columns and rows from which a manifest is built. Rows may lack an `id`."""

    columns: dict[str, pa.DataType]
    rows: Callable[[], Iterator[Row]]
    metadata: Mapping[bytes, bytes] = field(default_factory=dict)
    """Metadata of a Parquet source's schema, such as the Hugging Face features."""
    left_out: tuple[str, ...] = ()
    """The files of a folder that have no row: how many, why, and the first ones."""


def from_file(url: str, *, prompt_column: str = "prompt") -> Source:
    """Return the rows of a CSV, TSV, JSONL, text (one prompt per line) or Parquet file, by its suffix.

    The column `prompt_column` is renamed to `prompt`. BuildError if the file cannot be used."""
    suffix = url.lower().rstrip("/").rpartition(".")[2]
    if suffix == "parquet":
        return _from_parquet(url, prompt_column)
    if suffix in ("txt", "text"):
        return Source(columns={"prompt": pa.string()}, rows=lambda: _text_rows(url))
    if suffix in ("csv", "tsv"):
        delimiter = "\t" if suffix == "tsv" else ","
        return _infer_types(url, lambda: _csv_rows(url, delimiter), prompt_column)
    if suffix in ("jsonl", "ndjson", "json"):
        return _infer_types(url, lambda: _json_rows(url), prompt_column)
    raise BuildError(f"{storage.redact_url(url)}: the suffix is unknown; use .csv, .tsv, .jsonl, .txt or .parquet")


def read_lines(url: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, with or without a byte order mark. BuildError if it cannot be read."""
    try:
        with io.TextIOWrapper(storage.open_file(url), encoding="utf-8-sig", newline="") as stream:
            yield from stream
    except UnicodeDecodeError as error:
        raise BuildError(f"{storage.redact_url(url)}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise BuildError(
            f"{storage.redact_url(url)}: cannot be read; there is no such file, or access is denied"
        ) from error


def _text_rows(url: str) -> Iterator[Row]:
    return ({"prompt": line.strip()} for line in read_lines(url) if line.strip())


def _csv_rows(url: str, delimiter: str) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(read_lines(url), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names):
            raise BuildError(f"{storage.redact_url(url)}: two columns have the same name")
        reader.fieldnames = names
        for row in reader:
            location = f"{storage.redact_url(url)}, line {reader.line_num}"
            if None in row:
                raise BuildError(
                    f"{location}: it has more fields than the first line; quote fields that contain commas"
                )
            yield location, {name: value if value and value.strip() else None for name, value in row.items()}
    except csv.Error as error:
        raise BuildError(f"{storage.redact_url(url)}, line {reader.reader.line_num}: {error}") from error


def _json_rows(url: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(read_lines(url), 1):
        if not line.strip():
            continue
        location = f"{storage.redact_url(url)}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BuildError(f"{location}: not JSON ({error.msg}); give one object per line") from error
        if not isinstance(row, dict):
            raise BuildError(f"{location}: not a JSON object; give one object per line")
        nested = {name: json.dumps(value) for name, value in row.items() if isinstance(value, dict | list)}
        for name in row:
            convert_value("the name of a column", name, location)
        yield location, row | nested


def _infer_types(url: str, read: Callable[[], Iterator[tuple[str, Row]]], prompt_column: str) -> Source:
    """Return a source whose column types are inferred by reading all rows once beforehand."""
    kinds: dict[str, str] = {}
    for _, row in read():
        for name, value in row.items():
            kinds[name] = wider_type(kinds.get(name, "nothing"), value)
    if not kinds:
        raise BuildError(f"{storage.redact_url(url)}: the file contains no row")
    _check_prompt(url, list(kinds), prompt_column)
    names = {name: "prompt" if name == prompt_column else name for name in kinds}
    columns = {names[name]: column_type(names[name], kind) for name, kind in kinds.items()}

    def rows() -> Iterator[Row]:
        for location, row in read():
            renamed = ((names[name], value) for name, value in row.items())
            yield {name: as_column_type(convert_value(name, value, location), columns[name]) for name, value in renamed}

    return Source(columns=columns, rows=rows)


def _check_prompt(url: str, columns: list[str], prompt_column: str) -> None:
    if prompt_column in columns or (prompt_column == "prompt" and "image" in columns):
        return
    raise BuildError(
        f'{storage.redact_url(url)}: there is no column "{prompt_column}" (its columns are {", ".join(columns)}); '
        "name the column of the prompts with --prompt-column"
    )


def _from_parquet(url: str, prompt_column: str) -> Source:
    schema = read_schema(url)
    _check_prompt(url, schema.names, prompt_column)
    names = {name: "prompt" if name == prompt_column else name for name in schema.names}
    known = PARAMETERS | {"seed": seed_type(schema)}
    columns = {names[name]: known.get(names[name], schema.field(name).type) for name in schema.names}
    if "id" in columns:
        columns["id"] = pa.string()

    def rows() -> Iterator[Row]:
        count = itertools.count()
        for batch in read_batches(url, rows=1024):
            values = [_parquet_values(names[name], batch[name]) for name in batch.schema.names]
            for row in zip(*values, strict=True):
                location = f"{storage.redact_url(url)}, row {next(count)}"
                yield {
                    names[name]: convert_value(names[name], value, location)
                    for name, value in zip(names, row, strict=True)
                }

    return Source(columns=columns, rows=rows, metadata=_renamed_metadata(schema.metadata, names))


def _parquet_values(name: str, column: pa.Array) -> Iterable[Any]:
    """Return Python values of the columns that are converted; those of the others stay Arrow's."""
    if name == "id" or name in PARAMETERS or name in SOURCES:
        return column_values(column)
    return (value if value.is_valid else None for value in column)


def _renamed_metadata(metadata: Mapping[bytes, bytes] | None, names: Mapping[str, str]) -> dict[bytes, bytes]:
    renamed = dict(metadata or {})
    if features := features_of(metadata):
        features = {names.get(name, name): feature for name, feature in features.items()}
        renamed[HUGGING_FACE] = json.dumps({"info": {"features": features}}).encode()
    return renamed
