"""Reading and validating manifests: every problem with its row, before a model is loaded.

Rows are counted from 0, over all files in the order of their names. The rules stand in `manifest_rules`: a stage
applies them to one row (`row_problems`), `validate` to whole manifests, column by column.
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
_TAKEN_UP: Final = frozenset({"id", "image", "prompt", "negative_prompt", "seed"})
"""Of an output that is a manifest: what its pictures are. Columns that no run wrote are carried through as ever."""


def manifest_files(path: str) -> list[str]:
    """The Parquet files of a manifest: the file itself, or those in a folder, sorted."""
    try:
        place = storage.join(path, DATA) if is_run_output(path) else path
        files = storage.list_files(place, ".parquet") if storage.is_folder(place) else [place]
        if not files:
            raise ManifestError(f"{storage.redact_url(path)}: the folder holds no .parquet file")
        if files == [place] and not storage.exists(path):
            raise ManifestError(f"{storage.redact_url(path)}: there is no such file or folder")
    except storage.StorageError as error:
        raise ManifestError(str(error)) from error
    return files


def is_run_output(path: str) -> bool:
    """Whether a manifest is the output folder of a finished run, whose pictures another run takes up.

    ManifestError if the run is not finished."""
    run = storage.join(path, "run.json")
    if path.endswith(".parquet") or not storage.exists(run) or not storage.is_folder(storage.join(path, DATA)):
        return False
    try:
        status = json.loads(storage.read_bytes(run))["status"]
    except (ValueError, KeyError, TypeError):
        status = None
    if status != "finished":
        raise ManifestError(f"{storage.redact_url(path)}: holds a run that has not finished; the same command ends it")
    return True


def excluded_columns(path: str) -> frozenset[str]:
    """Columns of an output that say how its pictures were made: not how those of a run that takes them up will be."""
    return frozenset({*OUTPUT, *PROVENANCE, *PARAMETERS} - _TAKEN_UP) if is_run_output(path) else frozenset()


def open_file(path: str) -> pq.ParquetFile:
    """One Parquet file of a manifest, opened; its footer alone has been read."""
    try:
        filesystem, inner = storage.arrow_filesystem(path)
        return pq.ParquetFile(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise ManifestError(
            f"{storage.redact_url(path)}: is no Parquet file; `latentmill manifest build` makes one "
            "of CSV, JSONL or text"
        ) from error
    except OSError as error:
        raise ManifestError(f"{storage.redact_url(path)}: cannot be read: {str(error).splitlines()[0]}") from error


def read_schema(path: str) -> pa.Schema:
    """The columns of a manifest: those of all its files together."""
    try:
        schema = pa.unify_schemas([open_file(file).schema_arrow for file in manifest_files(path)])
        hidden = excluded_columns(path)
        return pa.schema([field for field in schema if field.name not in hidden]) if hidden else schema
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{storage.redact_url(path)}: its files differ in their columns: {reason}") from error


def count_rows(path: str) -> int:
    return sum(open_file(file).metadata.num_rows for file in manifest_files(path))


def read_batches(path: str, columns: list[str] | None = None, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """The rows, a batch at a time; columns that a file lacks are left out of its batches."""
    hidden = excluded_columns(path)
    for file in manifest_files(path):
        opened = open_file(file)
        names = [name for name in opened.schema_arrow.names if name not in hidden]
        wanted = names if columns is None else [name for name in columns if name in names]
        try:
            yield from opened.iter_batches(batch_size=rows, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{storage.redact_url(file)}: is damaged: {str(error).splitlines()[0]}") from error


def fingerprint(path: str) -> str:
    """sha256 of the files' content, in the order of their names, as hexadecimal digits."""
    digest = hashlib.sha256()
    for file in manifest_files(path):
        filesystem, inner = storage.locate(file)
        content = hashlib.sha256()
        with filesystem.open(inner, "rb") as stream:
            while block := cast(bytes, stream.read(2**22)):
                content.update(block)
        digest.update(content.digest())
    return digest.hexdigest()


def take_rows(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """The first `limit` rows."""
    for batch in batches:
        if limit is not None and batch.num_rows >= limit:
            yield batch.slice(0, limit)
            return
        limit = None if limit is None else limit - batch.num_rows
        yield batch
