"""Validation of whole manifests, column by column: all problems with their rows, before a model is loaded."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.manifest.arrow_values import column_values, scalar_value
from pipeline.manifest.columns import schema_problems
from pipeline.manifest.duplicates import duplicate_problems
from pipeline.manifest.read import count_rows, read_batches, read_schema, take_rows
from pipeline.manifest.rules import Problem, Rule, Rules, column_rules, row_problems, value_problem
from pipeline.schema import PARAMETERS, SOURCES


def validate(path: str, rules: Rules, *, limit: int | None = None) -> Iterator[Problem]:
    """Yield every problem of the first `limit` rows in the order of the rows, duplicate ids last.

    If the schema has problems, only those are reported. Memory: 8 bytes per row. ManifestError if the manifest cannot
    be read."""
    schema = read_schema(path)
    problems = schema_problems(schema, rules)
    yield from problems
    if problems:
        return
    if count_rows(path) == 0:
        yield Problem(message="there are no rows")
    first = 0
    for batch in take_rows(read_batches(path, _columns_to_read(rules, schema)), limit):
        yield from _batch_problems(batch, first, rules)
        first += batch.num_rows
    yield from duplicate_problems(path, limit)


def _batch_problems(batch: pa.RecordBatch, first: int, rules: Rules) -> Iterator[Problem]:
    """Apply each rule once per distinct value of its column, then `row_problems` to the rows that it rejects."""
    rejected = np.zeros(batch.num_rows, bool)
    for name, rule in column_rules(rules):
        rejected |= _rejected_rows(batch, name, rule, rules)
    if rules.task == "generate" and "strength" in batch.schema.names:
        has_strength = batch["strength"].is_valid().to_numpy(zero_copy_only=False)
        rejected |= has_strength & (~_has_source(batch, "image"))
    for index in np.flatnonzero(rejected):
        row = {name: scalar_value(batch[name][int(index)]) for name in batch.schema.names}
        for message in row_problems(row, rules):
            yield Problem(row=first + int(index), id=row.get("id"), message=message)


def _rejected_rows(batch: pa.RecordBatch, name: str, rule: Rule, rules: Rules) -> NDArray[np.bool_]:
    if name in SOURCES:
        return np.full(batch.num_rows, rule(None, rules) is not None) & ~_has_source(batch, name)
    if name not in batch.schema.names:
        return np.full(batch.num_rows, rule(None, rules) is not None)
    column = batch[name]
    if pa.types.is_nested(column.type):
        return np.array([value_problem(name, value, rule, rules) is not None for value in column_values(column)], bool)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values = [*column_values(encoded.dictionary), None]
    rejected = np.array([value_problem(name, value, rule, rules) is not None for value in values])
    indices = pc.fill_null(encoded.indices.cast(pa.int64()), len(rejected) - 1).to_numpy(zero_copy_only=False)
    return rejected[indices]


def _has_source(batch: pa.RecordBatch, name: str) -> NDArray[np.bool_]:
    """Return True for each row whose `image` or `mask` is not empty."""
    if name not in batch.schema.names:
        return np.zeros(batch.num_rows, bool)
    column = batch[name]
    if pa.types.is_struct(column.type):
        return np.logical_or.reduce([_is_not_empty(part) for part in column.flatten()])
    return np.zeros(batch.num_rows, bool) if pa.types.is_null(column.type) else _is_not_empty(column)


def _is_not_empty(column: pa.Array) -> NDArray[np.bool_]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    lengths = pc.fill_null(pc.call_function("binary_length", [column]), 0)
    return lengths.to_numpy(zero_copy_only=False) > 0


def _columns_to_read(rules: Rules, schema: pa.Schema) -> list[str]:
    """Return the columns that the rules apply to; those of images only if a missing image would be a problem."""
    needs_sources = rules.task != "generate" or "strength" in schema.names
    return ["id", *PARAMETERS, *(SOURCES if needs_sources else ())]
