"""Duplicate ids of a manifest, found with 8 bytes of memory per row."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.manifest.arrow_values import column_values
from pipeline.manifest.read import read_ids
from pipeline.manifest.rules import DUPLICATE, Problem


def duplicate_ids(path: str, *, limit: int | None = None) -> frozenset[str]:
    """Return the ids that more than one row has. All of these rows are invalid."""
    return frozenset(problem.id for problem in duplicate_problems(path, limit) if problem.id is not None)


def duplicate_problems(path: str, limit: int | None) -> Iterator[Problem]:
    """Yield one problem per row whose id is not unique, in the order of the rows."""
    rows = _rows_of_duplicates(path, limit)
    for index, row_id in sorted((index, row_id) for row_id, indices in rows.items() for index in indices):
        indices = rows[row_id]
        other = indices[1] if indices[0] == index else indices[0]
        more = f", and {len(indices) - 2} more" if len(indices) > 2 else ""
        yield Problem(row=index, id=row_id, column="id", message=f"{DUPLICATE}: row {other} has it too{more}")


def hash_column(values: pa.Array) -> NDArray[np.uint64]:
    """Return a 64-bit hash (blake2b) per string. Each null gets a hash of its own."""
    digests = b"".join(
        hashlib.blake2b(value.encode(), digest_size=8).digest() if value is not None else _null_hash(index)
        for index, value in enumerate(column_values(values))
    )
    return np.frombuffer(digests, np.uint64)


def _rows_of_duplicates(path: str, limit: int | None) -> dict[str, list[int]]:
    """Return the row numbers of each id that is not unique: candidates by their hashes, then by the ids."""
    hashes = np.concatenate([np.zeros(0, np.uint64), *(hash_column(ids) for ids in read_ids(path, limit))])
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return {}
    rows: dict[str, list[int]] = {}
    candidates = np.flatnonzero(np.isin(hashes, repeated))
    first = 0
    for ids in read_ids(path, limit):
        inside = candidates[(candidates >= first) & (candidates < first + len(ids))]
        for index, row_id in zip(inside, column_values(ids.take(pa.array(inside - first))), strict=True):
            if row_id is not None:
                rows.setdefault(row_id, []).append(int(index))
        first += len(ids)
    return {row_id: indices for row_id, indices in rows.items() if len(indices) > 1}


def _null_hash(index: int) -> bytes:
    return hashlib.blake2b(index.to_bytes(8, "big"), digest_size=8, person=b"null").digest()
