"""Reading manifests: one schema for all files, rows in that schema, counts and fingerprints.

Rows are counted from 0 over all files, in the order of the files' names.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ManifestError
from pipeline.manifest.arrow_values import plain_array, plain_schema
from pipeline.manifest.files import ManifestFile, excluded_columns, manifest_files, partition_types
from pipeline.manifest.unify import unify_schemas

BATCH_ROWS: Final = 16_384
_BATCH_BYTES: Final = 32 * 2**20
_SLICE_BYTES: Final = 64 * 2**20
_READERS: Final = 16
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ManifestSlice:
    """Consecutive row groups of a manifest file, read by one task."""

    file: ManifestFile
    row_groups: tuple[int, ...]
    rows: int
    """Rows that are read: those of the row groups, or the first ones of them."""
    size_bytes: int


def read_schema(path: str) -> pa.Schema:
    """Return the columns of a manifest: the union over its files, and the columns that its folders give.

    ManifestError if the files do not fit together."""
    return _schema_of(path, manifest_files(path))


def count_rows(path: str) -> int:
    """Return the number of rows, from the files' footers."""
    return sum(_read_footers(manifest_files(path), lambda footer: footer.metadata.num_rows))


def read_batches(path: str, columns: list[str] | None = None, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most `rows` rows and about 32 MB, all in the schema of `read_schema`.

    Of `columns`, those that the manifest lacks are left out."""
    files = manifest_files(path)
    schema = _schema_of(path, files)
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns if name in schema.names], metadata=schema.metadata)
    for file in files:
        yield from _read_file(file, schema, rows=rows)


def read_ids(path: str, limit: int | None = None) -> Iterator[pa.Array]:
    """Yield the ids of all rows, or of the first `limit`. ManifestError if the manifest has no column `id`."""
    for batch in take_rows(read_batches(path, ["id"]), limit):
        if "id" not in batch.schema.names:
            raise ManifestError(f'{storage.redact_url(path)}: there is no column "id"')
        yield batch["id"]


def take_rows(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """Yield the first `limit` rows; all rows if `limit` is None."""
    for batch in batches:
        if limit is not None and batch.num_rows >= limit:
            yield batch.slice(0, limit)
            return
        limit = None if limit is None else limit - batch.num_rows
        yield batch


def manifest_slices(path: str, limit: int | None = None) -> list[ManifestSlice]:
    """Return the slices that hold the rows of a manifest, or its first `limit` rows, in order."""
    files = manifest_files(path)
    slices: list[ManifestSlice] = []
    left = 2**63 if limit is None else limit
    for file, metadata in zip(files, _read_footers(files, lambda footer: footer.metadata), strict=True):
        for slice_ in _slices_of(file, metadata):
            if left > 0:
                slices.append(ManifestSlice(file, slice_.row_groups, min(slice_.rows, left), slice_.size_bytes))
            left -= slice_.rows
    return slices


def read_slice(part: ManifestSlice, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a slice in the schema of its manifest."""
    yield from take_rows(_read_file(part.file, schema, row_groups=part.row_groups), part.rows)


def fingerprint(path: str) -> str:
    """Return the sha256, in hexadecimal, over the sha256 digests of the files in the order of their names."""
    digest = hashlib.sha256()
    for file in manifest_files(path):
        with storage.open_file(file.url) as stream:
            content = hashlib.file_digest(stream, "sha256")
        digest.update(content.digest())
        if file.partition:
            digest.update(repr(file.partition).encode())
    return digest.hexdigest()


def _schema_of(path: str, files: Sequence[ManifestFile]) -> pa.Schema:
    partitions, excluded = partition_types(files), excluded_columns(path)
    schemas = _read_footers(files, lambda footer: footer.schema_arrow)
    with_id = [file for file, schema in zip(files, schemas, strict=True) if "id" in (*schema.names, *partitions)]
    for file, schema in zip(files, schemas, strict=True):
        if with_id and file not in with_id:
            raise ManifestError(f'{storage.redact_url(file.url)}: there is no column "id", which other files have')
        if both := next((name for name in partitions if name in schema.names), None):
            raise ManifestError(
                f'{storage.redact_url(file.url)}: the column "{both}" is in the file, and folders give it too '
                f"({both}=...); keep one of them"
            )
    try:
        schema = unify_schemas(schemas)
    except ManifestError as error:
        raise ManifestError(f"{storage.redact_url(path)}: {error}") from error
    fields = [field for field in schema if field.name not in excluded]
    fields += [pa.field(*pair) for pair in partitions.items()]
    return plain_schema(pa.schema(fields, metadata=schema.metadata))


def _read_file(
    file: ManifestFile, schema: pa.Schema, *, rows: int = BATCH_ROWS, row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    opened = _open_file(file.url)
    partition = dict(file.partition)
    selected = [name for name in schema.names if name in opened.schema_arrow.names]
    rows = min(rows, _rows_of_batch(opened.metadata))
    try:
        for batch in opened.iter_batches(batch_size=rows, columns=selected, row_groups=row_groups):
            arrays = [_column(batch, field, partition) for field in schema]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema) if schema.names else batch
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{storage.redact_url(file.url)}: the file is damaged: {reason}") from error


def _column(batch: pa.RecordBatch, field: pa.Field, partition: dict[str, str | None]) -> pa.Array:
    if field.name in batch.schema.names:
        column = plain_array(batch.column(field.name))
        if column.type == field.type:
            return column
        while pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(field.type)
    if partition.get(field.name) is not None:
        return pa.repeat(pa.scalar(partition[field.name]).cast(field.type), batch.num_rows)
    if isinstance(field.type, pa.BaseExtensionType):
        nulls = pa.nulls(batch.num_rows, field.type.storage_type)
        return pa.ExtensionArray.from_storage(field.type, nulls)
    return pa.nulls(batch.num_rows, field.type)


def _rows_of_batch(metadata: pq.FileMetaData) -> int:
    """Return the rows of a file that take about _BATCH_BYTES."""
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    return max(1, int(_BATCH_BYTES * metadata.num_rows / size)) if size else BATCH_ROWS


def _slices_of(file: ManifestFile, metadata: pq.FileMetaData) -> Iterator[ManifestSlice]:
    groups: list[int] = []
    rows = size = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if groups and (rows + group.num_rows > BATCH_ROWS or size + group.total_byte_size > _SLICE_BYTES):
            yield ManifestSlice(file, tuple(groups), rows, size)
            groups, rows, size = [], 0, 0
        groups.append(index)
        rows, size = rows + group.num_rows, size + group.total_byte_size
    if rows:
        yield ManifestSlice(file, tuple(groups), rows, size)


def _read_footers(files: Sequence[ManifestFile], read: Callable[[pq.ParquetFile], Result]) -> list[Result]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda file: read(_open_file(file.url)), files))


def _open_file(url: str) -> pq.ParquetFile:
    """Open a Parquet file and read its footer."""
    try:
        filesystem, inner = storage.arrow_filesystem(url)
        return pq.ParquetFile(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        if "file size is 0 bytes" in str(error):
            raise ManifestError(f"{storage.redact_url(url)}: the file is empty (0 bytes); write it again") from error
        raise ManifestError(
            f"{storage.redact_url(url)}: not a Parquet file; `latentmill manifest build` makes one "
            "from CSV, JSONL or text"
        ) from error
    except OSError as error:
        raise ManifestError(f"{storage.redact_url(url)}: cannot be read: {str(error).splitlines()[0]}") from error
