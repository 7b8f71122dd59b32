"""The ledger of an output: which rows are committed, and in which files. A resumed run reads nothing else."""

import hashlib
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.manifest.identity import hash_ids
from pipeline.output.id_sets import HashBuckets, isin_buckets
from pipeline.output.image_files import read_image_paths
from pipeline.schema import DATA, FAILED_FOLDER, FILES, LEDGER, LEDGER_FOLDER, OK

_READERS: Final = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerState:
    """The committed rows of an output. The hashes are on disk, in buckets."""

    id_hashes: HashBuckets
    """Hashes of the committed ids."""
    row_hashes: HashBuckets | None
    """Hashes of the manifest's rows as they were when they were committed; None if an entry does not have them."""
    ok: int
    failed: int
    files: frozenset[str]
    """Paths, relative to the output, of files with committed rows: `data/KEY.parquet`, ..."""
    listed: frozenset[str]
    """The data files and files of failed rows that the storage listed, committed or not."""


def read_ledger(output: str) -> LedgerState:
    """Return the committed rows of an output; an output that does not exist has none."""
    id_hashes, files, ok, failed = HashBuckets(), set[str](), 0, 0
    row_hashes: HashBuckets | None = HashBuckets()
    listed = frozenset(list_data_files(output))
    for _, entry in read_entry_urls(output, listed):
        id_hashes.add(entry["id"].to_pylist())
        if row_hashes is not None and "row" in entry.column_names:
            row_hashes.add_hashes(np.frombuffer(b"".join(entry["row"].to_pylist()), "S16"))
        else:
            row_hashes = None
        ok_rows = pc.call_function("equal", [entry["status"], OK]).to_pylist().count(True)
        ok, failed = ok + ok_rows, failed + entry.num_rows - ok_rows
        files.update(entry["file"].unique().to_pylist())
    return LedgerState(
        id_hashes=id_hashes, row_hashes=row_hashes, ok=ok, failed=failed, files=frozenset(files), listed=listed
    )


def read_entries(output: str) -> Iterator[pa.Table]:
    """Yield the ledger's entries. Reads up to 64 of them ahead, in parallel."""
    return (entry for _, entry in read_entry_urls(output, list_data_files(output)))


def read_entry_urls(output: str, listed: Collection[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the ledger's entries with their URLs, in the order of their names; see `read_entries`.

    `listed` are the files of `list_data_files`, which a caller lists once: an output may have a million."""
    urls = _entry_urls(output, listed)
    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(urls), _READERS * 4):
            batch = urls[start : start + _READERS * 4]
            yield from zip(batch, pool.map(_read_entry, batch), strict=True)


def remove_failed_rows(output: str) -> int:
    """Remove the failed rows from the ledger, so that the next run processes them again; return their number.

    An entry is replaced by one with its good rows only, or deleted if it has none. If the process is killed midway,
    the ledger is still correct, and the files of removed rows are uncommitted."""
    removed = 0
    for url in _entry_urls(output, list_data_files(output)):
        rows = _read_entry(url).to_pylist()
        ok_rows = [row for row in rows if row["status"] == OK]
        removed += len(rows) - len(ok_rows)
        if not ok_rows:
            storage.delete(url)
        elif len(ok_rows) < len(rows):
            storage.write_bytes(url, encode_entry(ok_rows))
    return removed


def clear_ledger(output: str) -> None:
    """Delete all entries, so that no row of the output is committed."""
    for url in _entry_urls(output, list_data_files(output)):
        storage.delete(url)


def list_data_files(output: str) -> list[str]:
    """Return the data files and the files of failed rows, committed or not: `data/KEY.parquet`, ..."""
    urls = [url for folder in (DATA, FAILED_FOLDER) for url in storage.list_files(storage.join(output, folder))]
    return [posixpath.join(*url.split("/")[-2:]) for url in urls]


def find_orphans(output: str, listed: Collection[str], files: Collection[str]) -> list[str]:
    """Return the URLs of listed files that are not in `files`, those that the ledger names, and of orphaned images.

    An image in OUTPUT/files is orphaned if none of `files` has its path."""
    orphans = [storage.join(output, file) for file in listed if file not in files]
    images = storage.list_files(storage.join(output, FILES))
    return orphans + (_without_row(output, images, files) if images else [])


def delete_uncommitted(output: str, ledger: LedgerState) -> list[str]:
    """Delete data files and images that the ledger does not name, and unfinished files; return the URLs of the former.

    The caller holds the lease."""
    storage.delete_leftovers(output)
    orphans = find_orphans(output, ledger.listed, ledger.files)
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(storage.delete, orphans))
    return orphans


def _without_row(output: str, images: Sequence[str], files: Collection[str]) -> list[str]:
    """Return the images whose paths no data file has; none if a data file cannot be read, since it may have them."""
    data_files = [file for file in files if file.startswith(f"{DATA}/")]
    with HashBuckets() as paths, ThreadPoolExecutor(_READERS) as pool:
        try:
            for found in pool.map(lambda file: read_image_paths(output, file), data_files):
                paths.add(found)
        except storage.StorageError:
            return []
        hashes = hash_ids(storage.path_below(url, output) for url in images)
        known = isin_buckets(hashes, paths.read_sorted)
    return [url for url, is_known in zip(images, known, strict=True) if not is_known]


def part_key(ids: Sequence[str]) -> str:
    """Return the name of a part: a hash of its sorted row ids, so that the same rows always have the same name."""
    digest = hashlib.sha256()
    for row_id in sorted(ids):
        digest.update(row_id.encode() + b"\0")
    return digest.hexdigest()[:32]


def entry_url(output: str, key: str) -> str:
    return storage.join(output, LEDGER_FOLDER, f"{key}.parquet")


def encode_entry(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return a ledger entry as a Parquet file, one row per committed row, with the columns of LEDGER.

    The column `row` is left out if a row lacks it: entries of earlier versions have none."""
    names = [name for name in LEDGER if all(name in row for row in rows)]
    table = pa.Table.from_pylist(list(rows), pa.schema([(name, LEDGER[name]) for name in names]))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _entry_urls(output: str, data_files: Collection[str]) -> list[str]:
    """Return the URLs of all entries, sorted.

    A listing may lag behind writes, reads do not. So the entry of each data file that no listed entry covers is looked
    up too: a committed file is never taken for a leftover."""
    listed = storage.list_files(storage.join(output, LEDGER_FOLDER), ".parquet")
    keys = {posixpath.basename(url).removesuffix(".parquet") for url in listed}
    stems = {posixpath.basename(file).removesuffix(".parquet").partition("-")[0] for file in data_files}
    late = [url for key in stems - keys if storage.exists(url := entry_url(output, key))]
    return sorted([*listed, *late])


def _read_entry(url: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(url)))
