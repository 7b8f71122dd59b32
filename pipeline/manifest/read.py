"""Reading manifests: a Parquet file, a folder of Parquet files, or the output of a finished run.

Rows are counted from 0 over all files, in the order of the files' names.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ManifestError
from pipeline.schema import DATA, OUTPUT, PARAMETERS, PROVENANCE

BATCH_ROWS: Final = 16_384
_REUSED_COLUMNS: Final = frozenset({"id", "image", "prompt", "negative_prompt", "seed"})
"""The columns of a run's output that are read when it serves as a manifest, besides those that no run writes."""


def manifest_files(path: str) -> list[str]:
    """Return the Parquet files of a manifest, sorted. ManifestError if there is none."""
    try:
        location = storage.join(path, DATA) if is_run_output(path) else path
        files = storage.list_files(location, ".parquet") if storage.is_folder(location) else [location]
        if not files:
            raise ManifestError(f"{storage.redact_url(path)}: the folder contains no .parquet file")
        if files == [location] and not storage.exists(path):
            raise ManifestError(f"{storage.redact_url(path)}: there is no such file or folder")
    except storage.StorageError as error:
        raise ManifestError(str(error)) from error
    return files


def is_run_output(path: str) -> bool:
    """Return True if a manifest is the output of a finished run. ManifestError if the run has not finished."""
    run = storage.join(path, "run.json")
    if path.endswith(".parquet") or not storage.exists(run) or not storage.is_folder(storage.join(path, DATA)):
        return False
    try:
        status = json.loads(storage.read_bytes(run))["status"]
    except (ValueError, KeyError, TypeError):
        status = None
    if status != "finished":
        raise ManifestError(
            f"{storage.redact_url(path)}: the run of this output has not finished; repeat its command to finish it"
        )
    return True


def excluded_columns(path: str) -> frozenset[str]:
    """Return the columns that are not read: those of a run's output that record how its images were made."""
    return frozenset({*OUTPUT, *PROVENANCE, *PARAMETERS} - _REUSED_COLUMNS) if is_run_output(path) else frozenset()


def read_schema(path: str) -> pa.Schema:
    """Return the columns of a manifest: the union over its files. ManifestError if their types differ."""
    try:
        schema = pa.unify_schemas([_open_file(file).schema_arrow for file in manifest_files(path)])
        excluded = excluded_columns(path)
        return pa.schema([field for field in schema if field.name not in excluded]) if excluded else schema
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{storage.redact_url(path)}: its files differ in their columns: {reason}") from error


def count_rows(path: str) -> int:
    """Return the number of rows, from the files' footers."""
    return sum(_open_file(file).metadata.num_rows for file in manifest_files(path))


def read_batches(path: str, columns: list[str] | None = None, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield batches of at most `rows` rows. A batch lacks the columns that its file lacks."""
    excluded = excluded_columns(path)
    for file in manifest_files(path):
        opened = _open_file(file)
        names = [name for name in opened.schema_arrow.names if name not in excluded]
        selected = names if columns is None else [name for name in columns if name in names]
        try:
            yield from opened.iter_batches(batch_size=rows, columns=selected)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ManifestError(f"{storage.redact_url(file)}: the file is damaged: {reason}") from error


def take_rows(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """Yield the first `limit` rows; all rows if `limit` is None."""
    for batch in batches:
        if limit is not None and batch.num_rows >= limit:
            yield batch.slice(0, limit)
            return
        limit = None if limit is None else limit - batch.num_rows
        yield batch


def fingerprint(path: str) -> str:
    """Return the sha256, in hexadecimal, over the sha256 digests of the files in the order of their names."""
    digest = hashlib.sha256()
    for file in manifest_files(path):
        filesystem, inner = storage.locate(file)
        content = hashlib.sha256()
        with filesystem.open(inner, "rb") as stream:
            while block := cast(bytes, stream.read(2**22)):
                content.update(block)
        digest.update(content.digest())
    return digest.hexdigest()


def _open_file(path: str) -> pq.ParquetFile:
    """Open a Parquet file and read its footer."""
    try:
        filesystem, inner = storage.arrow_filesystem(path)
        return pq.ParquetFile(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise ManifestError(
            f"{storage.redact_url(path)}: not a Parquet file; `latentmill manifest build` makes one "
            "from CSV, JSONL or text"
        ) from error
    except OSError as error:
        raise ManifestError(f"{storage.redact_url(path)}: cannot be read: {str(error).splitlines()[0]}") from error
