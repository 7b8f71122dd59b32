"""Rows of a manifest that have changed since they were committed."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.arrow_values import column_values, rows_to_json
from pipeline.manifest.identity import hash_ids, hash_rows
from pipeline.manifest.read import read_batches, take_rows
from pipeline.output.id_sets import HashBuckets, isin_buckets, isin_sorted
from pipeline.output.ledger import LedgerState


@dataclass(frozen=True, slots=True)
class ChangedRows:
    """The number of committed rows that have changed, and the id of the first one."""

    count: int
    first: str


def find_changed_rows(url: str, limit: int | None, ledger: LedgerState) -> ChangedRows | None:
    """Compare the manifest's rows with those that were committed.

    Returns None if none has changed, or if the ledger lacks row hashes. Needs memory for one bucket of hashes. Of
    an embedded image only its size is compared, of a referenced one its URL."""
    if ledger.row_hashes is None:
        return None
    with HashBuckets() as ids, HashBuckets() as rows:
        for _, id_hashes, hashes in _read_hashes(url, limit):
            ids.add_hashes(id_hashes)
            rows.add_hashes(hashes)
        committed = sum(int(isin_sorted(*pair).sum()) for pair in zip(ids, ledger.id_hashes, strict=True))
        unchanged = sum(int(isin_sorted(*pair).sum()) for pair in zip(rows, ledger.row_hashes, strict=True))
    if unchanged >= committed:
        return None
    return ChangedRows(committed - unchanged, _first_changed(url, limit, ledger.id_hashes, ledger.row_hashes))


def _first_changed(url: str, limit: int | None, ids: HashBuckets, rows: HashBuckets) -> str:
    read_ids, read_rows = cache(ids.read_sorted), cache(rows.read_sorted)
    for names, id_hashes, hashes in _read_hashes(url, limit):
        changed = isin_buckets(id_hashes, read_ids) & ~isin_buckets(hashes, read_rows)
        if changed.any():
            return names[int(changed.argmax())]
    raise AssertionError("no row has changed")


def _read_hashes(url: str, limit: int | None) -> Iterator[tuple[list[str], NDArray[np.bytes_], NDArray[np.bytes_]]]:
    """Yield batches of the manifest: the ids, the hashes of the ids, and the hashes of the rows."""
    for batch in take_rows(read_batches(url), limit):
        named = batch.filter(batch["id"].is_valid())
        names = column_values(named["id"])
        yield names, hash_ids(names), hash_rows(rows_to_json(named))
