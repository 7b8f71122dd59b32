"""The ledger of an output: which rows are committed, and by which files. Reading it is all that resume needs."""

import hashlib
import posixpath
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.manifest.identity import hash_ids
from pipeline.output.id_sets import HashBuckets, among, buckets_of
from pipeline.schema import DATA, FAILED_FOLDER, LEDGER, LEDGER_FOLDER, OK

_READERS: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed:
    """What an output's ledger says. The ids' hashes are on disk, in buckets."""

    hashes: HashBuckets
    """Of the committed ids."""
    rows: HashBuckets | None
    """Of the manifest's rows that they were; None where an entry does not tell."""
    ok: int
    failed: int
    files: frozenset[str]
    """Files below the output that hold committed rows: `data/KEY.parquet`, ..."""

    def holds(self, ids: Sequence[str]) -> NDArray[np.bool_]:
        """For each id, whether it is committed. Reads the buckets that the ids fall into."""
        return held(hash_ids(ids), self.hashes.sorted)


def held(hashes: NDArray[np.bytes_], bucket_of: Callable[[int], NDArray[np.bytes_]]) -> NDArray[np.bool_]:
    """For each hash, whether the sorted bucket that `bucket_of` gives for it holds it."""
    found = np.zeros(len(hashes), bool)
    places = buckets_of(hashes)
    for bucket in np.unique(places):
        here = places == bucket
        found[here] = among(hashes[here], bucket_of(int(bucket)))
    return found


def entries_of(output: str) -> Iterator[pa.Table]:
    """The ledger's entries, some read ahead; memory: a few of them."""
    urls = _entry_urls(output)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(urls), _READERS * 4):
            yield from pool.map(_read_entry, urls[start : start + _READERS * 4])


def read_ledger(output: str) -> Committed:
    """Every committed row of an output; an output that is not there has none."""
    hashes, files, ok, failed = HashBuckets(), set[str](), 0, 0
    rows: HashBuckets | None = HashBuckets()
    for entry in entries_of(output):
        hashes.add(entry["id"].to_pylist())
        if rows is not None and "row" in entry.column_names:
            rows.add_hashes(np.frombuffer(b"".join(entry["row"].to_pylist()), "S16"))
        else:
            rows = None
        good = pc.call_function("equal", [entry["status"], OK]).to_pylist().count(True)
        ok, failed = ok + good, failed + entry.num_rows - good
        files.update(entry["file"].unique().to_pylist())
    return Committed(hashes=hashes, rows=rows, ok=ok, failed=failed, files=frozenset(files))


def forget_failed(output: str) -> int:
    """Take the failed rows out of the ledger, so that a run makes them again; how many they were.

    An entry is replaced by one of its good rows, or deleted: a kill on the way leaves a ledger that is true, and files
    of failed rows that no entry names."""
    forgotten = 0
    for url in _entry_urls(output):
        rows = _read_entry(url).to_pylist()
        good = [row for row in rows if row["status"] == OK]
        forgotten += len(rows) - len(good)
        if not good:
            storage.delete(url)
        elif len(good) < len(rows):
            storage.write_bytes(url, entry_bytes(good))
    return forgotten


def forget_all(output: str) -> None:
    """Empty the ledger: what the output holds is no part of the run that comes."""
    for url in _entry_urls(output):
        storage.delete(url)


def orphans_of(output: str, files: Container[str]) -> list[str]:
    """The URLs of data files that no ledger entry names."""
    found = [url for folder in (DATA, FAILED_FOLDER) for url in storage.list_files(storage.join(output, folder))]
    return [url for url in found if posixpath.join(*url.split("/")[-2:]) not in files]


def delete_uncommitted(output: str, committed: Committed) -> list[str]:
    """Delete data files that no ledger entry names, and what was never a whole file; give the URLs of the first."""
    storage.delete_leftovers(output)
    orphans = orphans_of(output, committed.files)
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


def entry_bytes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A ledger entry: a row a committed row, with LEDGER's columns (`row` may be missing, as in old entries)."""
    names = [name for name in LEDGER if all(name in row for row in rows)]
    table = pa.Table.from_pylist(list(rows), pa.schema([(name, LEDGER[name]) for name in names]))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _entry_urls(output: str) -> list[str]:
    return storage.list_files(storage.join(output, LEDGER_FOLDER), ".parquet")


def _read_entry(url: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(url)))
