"""Repair of a ledger into which a run committed after it had lost its lease.

A commit can be delayed on its way to the storage for longer than a lease lasts. Meanwhile another run takes over,
deletes the data files that no entry names, and makes the rows again. When the delayed entry arrives, it may name a
deleted file, or hold rows that the other run has committed too. Such entries are removed: rows that only they had are
made again, and the same row has the same image.
"""

from collections.abc import Collection, Container, Iterator

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.manifest.identity import hash_ids
from pipeline.output.lease import Lease
from pipeline.output.ledger import LedgerState, list_data_files, read_entry_urls, read_ledger
from pipeline.schema import OK


def repair_ledger(output: str, ledger: LedgerState) -> LedgerState:
    """Remove late entries; return the ledger's state, read again if there were any."""
    missing = _missing_files(output, ledger)
    repeated = set(_repeated_hashes(ledger))
    if not missing and not repeated:
        return ledger
    removed = _remove_entries(output, ledger.listed, missing, repeated)
    return read_ledger(output) if removed else ledger


def repair_output(output: str, damaged_files: set[str]) -> None:
    """Take damaged files out of the ledger of an output that no run writes to. OutputBusyError if one does."""
    lease = Lease(output)
    lease.acquire()
    try:
        _remove_entries(output, list_data_files(output), damaged_files)
    finally:
        lease.release()


def _missing_files(output: str, ledger: LedgerState) -> set[str]:
    """Return the files that the ledger names and the storage lacks; a file that no listing shows yet is asked for."""
    absent = ledger.files - ledger.listed
    return {file for file in absent if not storage.exists(storage.join(output, file))}


def _repeated_hashes(ledger: LedgerState) -> Iterator[bytes]:
    """Yield the hashes of ids that the ledger holds more than once. Memory: one bucket."""
    for hashes in ledger.id_hashes:
        yield from np.unique(hashes[1:][hashes[1:] == hashes[:-1]]).tolist()


def _remove_entries(
    output: str, listed: Collection[str], files: set[str], repeated: Container[bytes] = frozenset()
) -> int:
    """Delete entries that name one of the files, or a row that another entry names as good; return their number.

    `repeated` are the hashes of ids that several entries name. The next run makes the rows again. Of two entries with
    a good row the first stays. Failed rows may be there more than once: rows of the manifest with one id are committed
    as failed."""
    removed: list[str] = []
    good: set[bytes] = set()
    failed: dict[str, set[bytes]] = {}
    for url, entry in read_entry_urls(output, listed):
        good_rows, failed_rows = _repeated_rows(entry, repeated)
        if files & set(entry["file"].unique().to_pylist()) or good_rows & good:
            removed.append(url)
        else:
            good |= good_rows
            failed[url] = failed_rows
    removed += [url for url, hashes in failed.items() if hashes & good]
    for url in removed:
        storage.delete(url)
    return len(removed)


def _repeated_rows(entry: pa.Table, repeated: Container[bytes]) -> tuple[set[bytes], set[bytes]]:
    """Return the hashes of an entry's good and of its failed rows that are in `repeated`."""
    rows: tuple[set[bytes], set[bytes]] = (set(), set())
    for digest, status in zip(hash_ids(entry["id"].to_pylist()).tolist(), entry["status"].to_pylist(), strict=True):
        if digest in repeated:
            rows[status != OK].add(digest)
    return rows
