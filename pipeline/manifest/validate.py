"""Validating whole manifests, column by column: every problem with its row, before a model is loaded."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.manifest.read import BATCH_ROWS, count_rows, read_batches, read_schema, take_rows
from pipeline.manifest.rules import DUPLICATE, Problem, Rule, Rules, row_problems, rules_for, schema_problems
from pipeline.schema import PARAMETERS, SOURCES


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
    for batch in take_rows(read_batches(path, _columns_for(rules, schema), _rows_for(schema)), limit):
        yield from _problems_in(batch, first, rules)
        first += batch.num_rows
    yield from _duplicates(path, limit)


def duplicate_ids(path: str, *, limit: int | None = None) -> frozenset[str]:
    """The ids that more than one row has: none of these rows can be told from the other, so all are invalid."""
    return frozenset(problem.id for problem in _duplicates(path, limit) if problem.id is not None)


def _problems_in(batch: pa.RecordBatch, first: int, rules: Rules) -> Iterator[Problem]:
    """A rule looks at each distinct value of a column once, and `row_problems` at the rows that it refuses."""
    suspect = np.zeros(batch.num_rows, bool)
    for name, rule in rules_for(rules):
        suspect |= _refused(batch, name, rule, rules)
    if rules.task == "generate" and "strength" in batch.schema.names:
        given = batch["strength"].is_valid().to_numpy(zero_copy_only=False)
        suspect |= given & (~_given(batch, "image"))
    for index in np.flatnonzero(suspect):
        row = batch.slice(index, 1).to_pylist()[0]
        for message in row_problems(row, rules):
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
    batches = take_rows(read_batches(path, ["id"]), limit)
    hashes = np.concatenate([np.zeros(0, np.uint64), *(_hashes(batch["id"]) for batch in batches)])
    ordered = np.sort(hashes)
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(suspects):
        return
    rows: dict[str, list[int]] = {}
    candidates = np.flatnonzero(np.isin(hashes, suspects))
    first = 0
    for batch in take_rows(read_batches(path, ["id"]), limit):
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


def _columns_for(rules: Rules, schema: pa.Schema) -> list[str]:
    """What the rules look at; pictures are left where they are unless their absence would be a problem."""
    needs_sources = rules.task != "generate" or "strength" in schema.names
    return ["id", *PARAMETERS, *(SOURCES if needs_sources else ())]


def _rows_for(schema: pa.Schema) -> int:
    held = any(name in schema.names and not pa.types.is_string(schema.field(name).type) for name in SOURCES)
    return 128 if held else BATCH_ROWS
