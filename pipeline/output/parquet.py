"""Encode the Parquet files of an output."""

from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import attempt
from pipeline.output.file_schema import file_schema
from pipeline.schema import FAILED, MAX_ROW_GROUP_ROWS, ROW

MAX_FILE_BYTES: Final = 256 * 2**20
"""Bytes of images in a data file, at most; a file with one image may be larger."""


def encode_data_file(rows: pa.Table, schema: pa.Schema) -> bytes:
    """Return a Parquet file of good rows.

    Images are stored uncompressed, the other columns with zstd; a row group has at most MAX_ROW_GROUP_ROWS rows."""
    schema = file_schema(schema)
    names = [leaf for field in schema for leaf in _leaf_names(field)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression={name: "none" if name == "image.bytes" else "zstd" for name in names},  # pyright: ignore
        use_dictionary=[name for name in names if name not in ("image.bytes", "id", "sha256")],  # pyright: ignore
        write_statistics=[name for name in names if name != "image.bytes"],  # pyright: ignore
    ) as writer:
        for start in range(0, rows.num_rows, MAX_ROW_GROUP_ROWS):
            group = rows.slice(start, MAX_ROW_GROUP_ROWS).select(schema.names)
            group = group.take(pa.array(range(group.num_rows)))  # a copy: a slice would keep offsets of over 2 GiB
            columns = [_cast(column, field.type) for column, field in zip(group.columns, schema, strict=True)]
            writer.write_table(pa.table(columns, schema=schema))
    return sink.getvalue().to_pybytes()


def encode_or_halve(
    rows: pa.Table, encode: Callable[[pa.Table], bytes]
) -> Iterator[tuple[pa.Table, bytes | Exception]]:
    """Yield rows with their file. Rows that have none together are halved until those to blame stand alone."""
    content = attempt(lambda: encode(rows))
    if isinstance(content, Exception) and rows.num_rows > 1:
        half = rows.num_rows // 2
        yield from encode_or_halve(rows[:half], encode)
        yield from encode_or_halve(rows[half:], encode)
    else:
        yield rows, content


def encode_failed_file(rows: pa.Table) -> bytes:
    """Return a Parquet file of failed rows: id, error type and message, and the manifest's row as JSON."""
    columns = {"id": "id", "error_type": "error_type", "error_message": "error_message", "row": ROW}
    table = pa.table({name: rows[columns[name]].cast(kind) for name, kind in FAILED.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=MAX_ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def split_by_size(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield slices with at most MAX_FILE_BYTES of images each; without images, of about as many bytes in all columns.

    An image that is larger than that gets a slice of its own."""
    if "image" not in rows.column_names:
        max_rows = max(1, MAX_FILE_BYTES * rows.num_rows // max(rows.nbytes, 1))
        yield from (rows.slice(start, max_rows) for start in range(0, rows.num_rows, max_rows))
        return
    start = size = 0
    lengths = pc.call_function("binary_length", [rows["image"].combine_chunks().field("bytes")]).to_pylist()
    for index, length in enumerate(lengths):
        length = length or 0  # null if the images are files of their own
        if index > start and size + length > MAX_FILE_BYTES:
            yield rows.slice(start, index - start)
            start, size = index, 0
        size += length
    if rows.num_rows > start:
        yield rows.slice(start)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a column of a type; pyarrow's cast of nested nulls to their own type gives invalid arrays (26.0)."""
    return column if column.type == kind else column.cast(kind)


def _leaf_names(field: pa.Field) -> list[str]:
    """Return the names of a column's leaves in Parquet: `image.bytes`, `label_scores.list.element`, ..."""
    kind = field.type
    if pa.types.is_struct(kind):
        return [f"{field.name}.{leaf}" for inner in kind for leaf in _leaf_names(inner)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [f"{field.name}.list.{leaf}" for leaf in _leaf_names(kind.value_field.with_name("element"))]
    return [field.name]
