"""Hashes of ids on disk, cut into buckets: tens of millions are sorted, joined and counted one bucket at a time."""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.identity import DIGEST_BYTES, Shard, hash_ids
from pipeline.manifest.read import read_batches, take_rows

BUCKETS: Final = 64
_BUFFERED: Final = 2**16


def among(hashes: NDArray[np.bytes_], known: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """For each hash, whether it is among the `known` (sorted) ones."""
    if not len(known) or not len(hashes):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes


def buckets_of(hashes: NDArray[np.bytes_]) -> NDArray[np.intp]:
    """The bucket of each hash: its first byte decides."""
    first = np.ascontiguousarray(hashes).view(np.uint8).reshape(len(hashes), DIGEST_BYTES)[:, 0]
    return (first.astype(np.intp) * BUCKETS) >> 8


class HashBuckets:
    """A bag of ids' hashes in temporary files, 16 bytes each; memory: one bucket, and a few MB of buffers."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="latentmill-")
        self._waiting: list[NDArray[np.bytes_]] = []
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
        self._waiting.append(hashes)
        self._buffered += len(hashes)
        self.count += len(hashes)
        if self._buffered >= _BUFFERED:
            self._flush()

    def sorted(self, bucket: int) -> NDArray[np.bytes_]:
        """The hashes of one bucket, equal ones beside each other."""
        self._flush()
        path = self._path(bucket)
        return np.sort(np.fromfile(path, f"S{DIGEST_BYTES}")) if path.exists() else np.zeros(0, f"S{DIGEST_BYTES}")

    def __iter__(self) -> Iterator[NDArray[np.bytes_]]:
        """The buckets, each sorted, in order."""
        return (self.sorted(bucket) for bucket in range(BUCKETS))

    def _flush(self) -> None:
        if not self._buffered:
            return
        hashes = np.concatenate(self._waiting)
        self._waiting, self._buffered = [], 0
        places = buckets_of(hashes)
        for bucket in np.unique(places):
            with open(self._path(int(bucket)), "ab") as file:
                file.write(np.ascontiguousarray(hashes[places == bucket]).tobytes())

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:03}"


def ids_of(manifest_url: str, limit: int | None = None, shard: Shard | None = None) -> HashBuckets:
    """The ids of a manifest, or of its first `limit` rows, or those of one shard of these."""
    asked = HashBuckets()
    for batch in take_rows(read_batches(manifest_url, ["id"]), limit):
        hashes = hash_ids(row_id for row_id in batch["id"].to_pylist() if row_id is not None)
        asked.add_hashes(hashes if shard is None else hashes[shard.selects(hashes)])
    return asked
