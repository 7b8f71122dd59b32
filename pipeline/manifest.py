"""Reading and validating manifests: every problem with its row, before a model is loaded.

Rows are counted from 0, over all files in the order of their names. The rules stand in `manifest_rules`: a stage
applies them to one row (`problems_of`), `validate` to whole manifests, column by column.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.ledger import DATA
from pipeline.manifest_rules import DUPLICATE, Problem, Rule, Rules, problems_of, rules_for, schema_problems
from pipeline.schema import OUTPUT, PARAMETERS, PROVENANCE, SOURCES

_BATCH_ROWS: Final = 16_384
_TAKEN_UP: Final = frozenset({"id", "image", "prompt", "negative_prompt", "seed"})
"""Of an output that is a manifest: what its pictures are. Columns that no run wrote are carried through as ever."""


class ManifestError(ValueError):
    """A manifest that cannot be read at all; the text is one line."""


def manifest_files(path: str) -> list[str]:
    """The Parquet files of a manifest: the file itself, or those in a folder, sorted."""
    try:
        place = storage.join(path, DATA) if is_output(path) else path
        files = storage.list_files(place, ".parquet") if storage.is_folder(place) else [place]
        if not files:
            raise ManifestError(f"{storage.shown(path)}: the folder holds no .parquet file")
        if files == [place] and not storage.exists(path):
            raise ManifestError(f"{storage.shown(path)}: there is no such file or folder")
    except storage.StorageError as error:
        raise ManifestError(str(error)) from error
    return files


def is_output(path: str) -> bool:
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
        raise ManifestError(f"{storage.shown(path)}: holds a run that has not finished; the same command ends it")
    return True


def hidden_columns(path: str) -> frozenset[str]:
    """Columns of an output that say how its pictures were made: not how those of a run that takes them up will be."""
    return frozenset({*OUTPUT, *PROVENANCE, *PARAMETERS} - _TAKEN_UP) if is_output(path) else frozenset()


def open_file(path: str) -> pq.ParquetFile:
    """One Parquet file of a manifest, opened; its footer alone has been read."""
    try:
        filesystem, inner = storage.arrow_filesystem(path)
        return pq.ParquetFile(inner, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise ManifestError(
            f"{storage.shown(path)}: is no Parquet file; `latentmill manifest build` makes one of CSV, JSONL or text"
        ) from error
    except OSError as error:
        raise ManifestError(f"{storage.shown(path)}: cannot be read: {str(error).splitlines()[0]}") from error


def read_schema(path: str) -> pa.Schema:
    """The columns of a manifest: those of all its files together."""
    try:
        schema = pa.unify_schemas([open_file(file).schema_arrow for file in manifest_files(path)])
        hidden = hidden_columns(path)
        return pa.schema([field for field in schema if field.name not in hidden]) if hidden else schema
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{storage.shown(path)}: its files differ in their columns: {reason}") from error


def count_rows(path: str) -> int:
    return sum(open_file(file).metadata.num_rows for file in manifest_files(path))


def read_batches(path: str, columns: list[str] | None = None, rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """The rows, a batch at a time; columns that a file lacks are left out of its batches."""
    hidden = hidden_columns(path)
    for file in manifest_files(path):
        opened = open_file(file)
        names = [name for name in opened.schema_arrow.names if name not in hidden]
        wanted = names if columns is None else [name for name in columns if name in names]
        try:
            yield from opened.iter_batches(batch_size=rows, columns=wanted)
        except (pa.ArrowException, OSError) as error:
            raise ManifestError(f"{storage.shown(file)}: is damaged: {str(error).splitlines()[0]}") from error


def seed_of(row_id: str, run_seed: int) -> int:
    """The seed of a row that names none: a non-negative int64, the same in every run with this run's seed."""
    digest = hashlib.sha256(f"{run_seed}\0{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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


def validate(path: str, rules: Rules, *, limit: int | None = None) -> Iterator[Problem]:
    """Every problem of a manifest (of its first `limit` rows), in order of rows, duplicate ids last.

    Problems of the schema come first, and alone: rows are looked at only where the columns are right. Memory: 8 bytes
    a row. ManifestError where there is nothing to validate."""
    schema = read_schema(path)
    found = schema_problems(schema, rules)
    yield from found
    if found:
        return
    if count_rows(path) == 0:
        yield Problem(message="there are no rows")
    first = 0
    for batch in limited(read_batches(path, _columns_for(rules, schema), _rows_for(schema)), limit):
        yield from _problems_in(batch, first, rules)
        first += batch.num_rows
    yield from _duplicates(path, limit)


def duplicate_ids(path: str, *, limit: int | None = None) -> frozenset[str]:
    """The ids that more than one row has: none of these rows can be told from the other, so all are invalid."""
    return frozenset(problem.id for problem in _duplicates(path, limit) if problem.id is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a manifest holds, for a person to read."""

    rows: int
    columns: dict[str, str]
    """Names and types."""
    distinct_prompts: int
    first_rows: list[dict[str, Any]]


def summary_of(path: str, first_rows: int) -> Summary:
    """A look at a manifest. Memory: 8 bytes a row, and the first rows."""
    schema = read_schema(path)
    first: list[dict[str, Any]] = []
    for batch in limited(read_batches(path, rows=max(1, min(first_rows, 64))), first_rows):
        first += batch.to_pylist()
    prompts = np.zeros(0, np.uint64)
    if "prompt" in schema.names:
        batches = read_batches(path, ["prompt"])
        prompts = np.concatenate([prompts, *(_hashes(batch["prompt"].drop_null()) for batch in batches)])
    columns = {name: str(schema.field(name).type) for name in schema.names}
    distinct = len(np.unique(prompts))
    return Summary(rows=count_rows(path), columns=columns, distinct_prompts=distinct, first_rows=first)


def _problems_in(batch: pa.RecordBatch, first: int, rules: Rules) -> Iterator[Problem]:
    """A rule looks at each distinct value of a column once, and `problems_of` at the rows that it refuses."""
    suspect = np.zeros(batch.num_rows, bool)
    for name, rule in rules_for(rules):
        suspect |= _refused(batch, name, rule, rules)
    if rules.task == "generate" and "strength" in batch.schema.names:
        given = batch["strength"].is_valid().to_numpy(zero_copy_only=False)
        suspect |= given & (~_given(batch, "image"))
    for index in np.flatnonzero(suspect):
        row = batch.slice(index, 1).to_pylist()[0]
        for message in problems_of(row, rules):
            yield Problem(row=first + int(index), id=row.get("id"), message=message)


def _refused(batch: pa.RecordBatch, name: str, rule: Rule, rules: Rules) -> NDArray[np.bool_]:
    if name in SOURCES:
        return np.full(batch.num_rows, rule(None, rules) is not None) & ~_given(batch, name)
    if name not in batch.schema.names:
        return np.full(batch.num_rows, rule(None, rules) is not None)
    column = batch[name]
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    refused = np.array([rule(value, rules) is not None for value in (*encoded.dictionary.to_pylist(), None)])
    indices = pc.fill_null(encoded.indices.cast(pa.int64()), len(refused) - 1).to_numpy(zero_copy_only=False)
    return refused[indices]


def _given(batch: pa.RecordBatch, name: str) -> NDArray[np.bool_]:
    if name not in batch.schema.names:
        return np.zeros(batch.num_rows, bool)
    column = batch[name]
    if pa.types.is_struct(column.type):
        parts = [_filled(part) for part in column.flatten()]
        return np.logical_or.reduce(parts)
    return np.zeros(batch.num_rows, bool) if pa.types.is_null(column.type) else _filled(column)


def _filled(column: pa.Array) -> NDArray[np.bool_]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    lengths = pc.fill_null(pc.call_function("binary_length", [column]), 0)
    return lengths.to_numpy(zero_copy_only=False) > 0


def _duplicates(path: str, limit: int | None) -> Iterator[Problem]:
    """Rows whose id another row has: candidates by 64-bit hashes, then exactly."""
    batches = limited(read_batches(path, ["id"]), limit)
    hashes = np.concatenate([np.zeros(0, np.uint64), *(_hashes(batch["id"]) for batch in batches)])
    ordered = np.sort(hashes)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(suspects):
        return
    rows: dict[str, list[int]] = {}
    candidates = np.flatnonzero(np.isin(hashes, suspects))
    first = 0
    for batch in limited(read_batches(path, ["id"]), limit):
        inside = candidates[(candidates >= first) & (candidates < first + batch.num_rows)]
        for index, row_id in zip(inside, batch["id"].take(pa.array(inside - first)).to_pylist(), strict=True):
            if row_id is not None:
                rows.setdefault(row_id, []).append(int(index))
        first += batch.num_rows
    places = ((index, row_id) for row_id, indices in rows.items() if len(indices) > 1 for index in indices)
    for index, row_id in sorted(places):
        twins = rows[row_id]
        other = twins[1] if twins[0] == index else twins[0]
        count = f", and {len(twins) - 2} more" if len(twins) > 2 else ""
        yield Problem(row=index, id=row_id, column="id", message=f"{DUPLICATE}: row {other} has it too{count}")


def _hashes(ids: pa.Array) -> NDArray[np.uint64]:
    """64 bits of blake2b for each id; nulls (which have their own problem) get hashes of their own."""
    digests = b"".join(
        hashlib.blake2b(value.encode(), digest_size=8).digest() if value is not None else _null_hash(index)
        for index, value in enumerate(ids.to_pylist())
    )
    return np.frombuffer(digests, np.uint64)


def _null_hash(index: int) -> bytes:
    return hashlib.blake2b(index.to_bytes(8, "big"), digest_size=8, person=b"null").digest()


def limited(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """The first `limit` rows."""
    for batch in batches:
        if limit is not None and batch.num_rows >= limit:
            yield batch.slice(0, limit)
            return
        limit = None if limit is None else limit - batch.num_rows
        yield batch


def _columns_for(rules: Rules, schema: pa.Schema) -> list[str]:
    """What the rules look at; pictures are left where they are unless their absence would be a problem."""
    needs_sources = rules.task != "generate" or "strength" in schema.names
    return ["id", *PARAMETERS, *(SOURCES if needs_sources else ())]


def _rows_for(schema: pa.Schema) -> int:
    held = any(name in schema.names and not pa.types.is_string(schema.field(name).type) for name in SOURCES)
    return 128 if held else _BATCH_ROWS
