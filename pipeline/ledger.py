"""The ledger of an output: which rows are committed, and by which files. Reading it is all that resume needs."""

import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.schema import LEDGER

DATA, FAILED_FOLDER, LEDGER_FOLDER = "data", "failed", "ledger"
OK, FAILED_STATUS = "ok", "failed"

_READERS: Final = 16
_DIGEST: Final = 16
"""Bytes of an id's hash: two of ten million ids agree with a probability of 1e-25."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """What an output's ledger says."""

    hashes: NDArray[np.bytes_]
    """Of the committed ids, sorted (`hashes_of`)."""
    ok: int
    failed: int
    files: frozenset[str]
    """Files below the output that hold committed rows: `data/KEY.parquet`, ..."""

    def holds(self, ids: Iterable[str]) -> NDArray[np.bool_]:
        """For each id, whether it is committed."""
        return among(hashes_of(ids), self.hashes)


def read_ledger(output: str) -> Committed:
    """Every committed row of an output; an output that is not there has none."""
    entries = storage.list_files(storage.join(output, LEDGER_FOLDER), ".parquet")
    with ThreadPoolExecutor(_READERS) as pool:
        parts = list(pool.map(_read_entry, entries))
    return Committed(
        hashes=np.sort(np.concatenate([np.zeros(0, f"S{_DIGEST}"), *(part.hashes for part in parts)])),
        ok=sum(part.ok for part in parts),
        failed=sum(part.failed for part in parts),
        files=frozenset().union(*(part.files for part in parts)),
    )


def delete_uncommitted(output: str, committed: Committed) -> list[str]:
    """Delete data files that no ledger entry names, and give their URLs: a run that was killed left them."""
    found = [url for folder in (DATA, FAILED_FOLDER) for url in storage.list_files(storage.join(output, folder))]
    orphans = [url for url in found if posixpath.join(*url.split("/")[-2:]) not in committed.files]
    for url in orphans:
        storage.delete(url)
    return orphans


def part_key(ids: Sequence[str]) -> str:
    """The name of a part: a hash of its sorted row ids, so that the same rows are the same part."""
    digest = hashlib.sha256()
    for row_id in sorted(ids):
        digest.update(row_id.encode() + b"\0")
    return digest.hexdigest()[:32]


def entry_url(output: str, key: str) -> str:
    return storage.join(output, LEDGER_FOLDER, f"{key}.parquet")


def entry_bytes(ids: Sequence[str], statuses: Sequence[str], files: Sequence[str]) -> bytes:
    """A ledger entry: a row a committed row."""
    columns = {"id": ids, "status": statuses, "file": files}
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in LEDGER.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def hashes_of(ids: Iterable[str]) -> NDArray[np.bytes_]:
    digests = [hashlib.blake2b(row_id.encode(), digest_size=_DIGEST).digest() for row_id in ids]
    return np.array(digests, f"S{_DIGEST}")


def among(hashes: NDArray[np.bytes_], known: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """For each hash, whether it is among the `known` (sorted) ones."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes


def _read_entry(url: str) -> Committed:
    table = pq.read_table(pa.BufferReader(storage.read_bytes(url)))
    ok = table["status"].to_pylist().count(OK)
    return Committed(
        hashes=hashes_of(table["id"].to_pylist()),
        ok=ok,
        failed=table.num_rows - ok,
        files=frozenset(table["file"].unique().to_pylist()),
    )
