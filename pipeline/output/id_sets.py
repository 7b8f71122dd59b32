"""Sets of id hashes on disk, in buckets, so that tens of millions are sorted and compared one bucket at a time."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.manifest.identity import DIGEST_BYTES, Shard, hash_ids, in_shard
from pipeline.manifest.read import read_batches, read_ids, take_rows
from pipeline.stages.rows import row_ids

BUCKETS: Final = 64
_BUFFERED_HASHES: Final = 2**16


def isin_sorted(hashes: NDArray[np.bytes_], sorted_hashes: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Return, for each hash, whether the sorted array contains it."""
    if not len(sorted_hashes) or not len(hashes):
        return np.zeros(len(hashes), bool)
    positions = np.minimum(np.searchsorted(sorted_hashes, hashes), len(sorted_hashes) - 1)
    return sorted_hashes[positions] == hashes


def isin_buckets(hashes: NDArray[np.bytes_], read_bucket: Callable[[int], NDArray[np.bytes_]]) -> NDArray[np.bool_]:
    """Return, for each hash, whether its bucket contains it; `read_bucket` returns a bucket's sorted hashes."""
    contained = np.zeros(len(hashes), bool)
    indices = bucket_indices(hashes)
    for bucket in np.unique(indices):
        selected = indices == bucket
        contained[selected] = isin_sorted(hashes[selected], read_bucket(int(bucket)))
    return contained


def bucket_indices(hashes: NDArray[np.bytes_]) -> NDArray[np.intp]:
    """Return the index of each hash's bucket, which depends on its first byte."""
    first = np.ascontiguousarray(hashes).view(np.uint8).reshape(len(hashes), DIGEST_BYTES)[:, 0]
    return (first.astype(np.intp) * BUCKETS) >> 8


class HashBuckets:
    """A multiset of hashes in temporary files, 16 bytes each. Needs memory for one bucket and a few MB of buffers."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="latentmill-")
        self._buffer: list[NDArray[np.bytes_]] = []
        self._buffered = 0
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def add(self, ids: Iterable[str]) -> None:
        self.add_hashes(hash_ids(ids))

    def add_hashes(self, hashes: NDArray[np.bytes_]) -> None:
        self._buffer.append(hashes)
        self._buffered += len(hashes)
        self.count += len(hashes)
        if self._buffered >= _BUFFERED_HASHES:
            self._flush()

    def read_sorted(self, bucket: int) -> NDArray[np.bytes_]:
        """Return the hashes of one bucket, sorted, with duplicates."""
        self._flush()
        path = self._path(bucket)
        return np.sort(np.fromfile(path, f"S{DIGEST_BYTES}")) if path.exists() else np.zeros(0, f"S{DIGEST_BYTES}")

    def __iter__(self) -> Iterator[NDArray[np.bytes_]]:
        """Yield the buckets in order, each sorted."""
        return (self.read_sorted(bucket) for bucket in range(BUCKETS))

    def _flush(self) -> None:
        if not self._buffered:
            return
        hashes = np.concatenate(self._buffer)
        self._buffer, self._buffered = [], 0
        indices = bucket_indices(hashes)
        for bucket in np.unique(indices):
            with open(self._path(int(bucket)), "ab") as file:
                file.write(np.ascontiguousarray(hashes[indices == bucket]).tobytes())

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:03}"


def read_manifest_ids(url: str, limit: int | None = None, shard: Shard | None = None) -> HashBuckets:
    """Return the hashes of a manifest's ids: of all rows or of the first `limit` rows, and of one shard of these.

    A row without an id counts under the id under which a run commits it as failed."""
    buckets = HashBuckets()
    for batch in take_rows(_batches_with_ids(url), limit):
        rows = batch if shard is None else batch.filter(pa.array(in_shard(batch, shard)))
        buckets.add(row_ids(pa.Table.from_batches([rows])))
    return buckets


def _batches_with_ids(url: str) -> Iterator[pa.RecordBatch]:
    """Yield the manifest's ids; whole rows if some have no id, since that id depends on the row's content."""
    complete = any(ids.null_count for ids in read_ids(url))
    return read_batches(url, None if complete else ["id"])
