"""A summary of a manifest, for a person to read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.manifest.read import count_rows, read_batches, read_schema, take_rows
from pipeline.manifest.validate import _hashes


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a manifest holds, for a person to read."""

    rows: int
    columns: dict[str, str]
    """Names and types."""
    distinct_prompts: int
    first_rows: list[dict[str, Any]]


def summarize(path: str, first_rows: int) -> Summary:
    """A look at a manifest. Memory: 8 bytes a row, and the first rows."""
    schema = read_schema(path)
    first: list[dict[str, Any]] = []
    for batch in take_rows(read_batches(path, rows=max(1, min(first_rows, 64))), first_rows):
        first += batch.to_pylist()
    prompts = np.zeros(0, np.uint64)
    if "prompt" in schema.names:
        batches = read_batches(path, ["prompt"])
        prompts = np.concatenate([prompts, *(_hashes(batch["prompt"].drop_null()) for batch in batches)])
    columns = {name: str(schema.field(name).type) for name in schema.names}
    distinct = len(np.unique(prompts))
    return Summary(rows=count_rows(path), columns=columns, distinct_prompts=distinct, first_rows=first)
