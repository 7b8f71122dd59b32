"""The summary of a manifest that `latentmill manifest show` prints."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.manifest.arrow_values import column_values
from pipeline.manifest.duplicates import hash_column
from pipeline.manifest.read import count_rows, read_batches, read_schema, take_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The size, columns and first rows of a manifest."""

    rows: int
    columns: dict[str, str]
    """Types by name."""
    distinct_prompts: int
    first_rows: list[dict[str, Any]]


def summarize(path: str, first_rows: int) -> Summary:
    """Summarize a manifest. Memory: 8 bytes per row, and the first rows."""
    schema = read_schema(path)
    first: list[dict[str, Any]] = []
    for batch in take_rows(read_batches(path, rows=max(1, min(first_rows, 64))), first_rows):
        columns = [column_values(column) for column in batch.columns]
        first += [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]
    prompts = np.zeros(0, np.uint64)
    if "prompt" in schema.names:
        batches = read_batches(path, ["prompt"])
        prompts = np.concatenate([prompts, *(hash_column(batch["prompt"].drop_null()) for batch in batches)])
    types = {name: str(schema.field(name).type) for name in schema.names}
    distinct = len(np.unique(prompts))
    return Summary(rows=count_rows(path), columns=types, distinct_prompts=distinct, first_rows=first)
