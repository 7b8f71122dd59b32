"""The Parquet files of an output."""

import json
from collections.abc import Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.schema import FAILED, MAX_ROW_GROUP_ROWS
from pipeline.stages.rows import ROW

MAX_FILE_BYTES: Final = 256 * 2**20
"""About how large a data file may become."""

_HUGGING_FACE: Final = {"info": {"features": {"image": {"_type": "Image"}}}}
"""What makes `datasets` decode the column `image`."""


def data_file(rows: pa.Table, schema: pa.Schema) -> bytes:
    """A Parquet file of good rows: pictures as they are, the rest in zstd, at most MAX_ROW_GROUP_ROWS a row group."""
    narrow = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # what Hugging Face's `Image` is, to the letter
    if "image" in schema.names:
        schema = pa.schema(
            [field.with_type(narrow) if field.name == "image" else field for field in schema],
            metadata={"huggingface": json.dumps(_HUGGING_FACE)},
        )
    names = [leaf for field in schema for leaf in _leaves(field)]
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
            writer.write_table(group.cast(schema))
    return sink.getvalue().to_pybytes()


def _leaves(field: pa.Field) -> list[str]:
    """The names that Parquet gives to what a column stores."""
    kind = field.type
    if pa.types.is_struct(kind):
        return [f"{field.name}.{leaf}" for inner in kind for leaf in _leaves(inner)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [f"{field.name}.list.{leaf}" for leaf in _leaves(kind.value_field.with_name("element"))]
    return [field.name]


def failed_file(rows: pa.Table) -> bytes:
    """A Parquet file of failed rows: what is wrong, and the row as it came."""
    columns = {"id": "id", "error_type": "error_type", "error_message": "error_message", "row": ROW}
    table = pa.table({name: rows[columns[name]].cast(kind) for name, kind in FAILED.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=MAX_ROW_GROUP_ROWS)
    return sink.getvalue().to_pybytes()


def split_into_files(rows: pa.Table) -> Iterator[pa.Table]:
    """The rows in runs of at most MAX_FILE_BYTES of pictures; where there are none, of all that they hold."""
    if "image" not in rows.column_names:
        most = max(1, MAX_FILE_BYTES * rows.num_rows // max(rows.nbytes, 1))
        yield from (rows.slice(start, most) for start in range(0, rows.num_rows, most))
        return
    start = size = 0
    lengths = pc.call_function("binary_length", [rows["image"].combine_chunks().field("bytes")]).to_pylist()
    for index, length in enumerate(lengths):
        length = length or 0  # null where they are files
        if index > start and size + length > MAX_FILE_BYTES:
            yield rows.slice(start, index - start)
            start, size = index, 0
        size += length
    if rows.num_rows > start:
        yield rows.slice(start)
