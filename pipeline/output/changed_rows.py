"""Rows of a manifest that are not what they were when they were made."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.identity import hash_ids, hash_rows, row_to_json
from pipeline.manifest.read import read_batches, take_rows
from pipeline.output.id_sets import HashBuckets, among
from pipeline.output.ledger import Committed, held


@dataclass(frozen=True, slots=True)
class ChangedRows:
    """How many of the committed rows have changed, and the first one's id."""

    count: int
    first: str


def changed_rows(url: str, limit: int | None, committed: Committed) -> ChangedRows | None:
    """What of the manifest's committed rows has changed; None if nothing has, or old ledger entries do not tell.

    Memory: one bucket of hashes. A picture that a row holds counts by its size alone, one that it names by its name."""
    if committed.rows is None:
        return None
    with HashBuckets() as ids, HashBuckets() as rows:
        for _, id_hashes, hashes in _hashed(url, limit):
            ids.add_hashes(id_hashes)
            rows.add_hashes(hashes)
        done = sum(int(among(*pair).sum()) for pair in zip(ids, committed.hashes, strict=True))
        same = sum(int(among(*pair).sum()) for pair in zip(rows, committed.rows, strict=True))
    return ChangedRows(done - same, _first(url, limit, committed.hashes, committed.rows)) if same < done else None


def _first(url: str, limit: int | None, ids: HashBuckets, rows: HashBuckets) -> str:
    known_ids, known_rows = cache(ids.sorted), cache(rows.sorted)
    for names, id_hashes, hashes in _hashed(url, limit):
        changed = held(id_hashes, known_ids) & ~held(hashes, known_rows)
        if changed.any():
            return names[int(changed.argmax())]
    raise AssertionError("no row has changed")


def _hashed(url: str, limit: int | None) -> Iterator[tuple[list[str], NDArray[np.bytes_], NDArray[np.bytes_]]]:
    """Batches of the manifest's ids, their hashes, and those of the rows."""
    for batch in take_rows(read_batches(url), limit):
        rows = [row for row in batch.to_pylist() if row["id"] is not None]
        names = [str(row["id"]) for row in rows]
        yield names, hash_ids(names), hash_rows(map(row_to_json, rows))
