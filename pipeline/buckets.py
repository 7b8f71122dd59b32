"""Hashes of ids on disk, cut into buckets: tens of millions are sorted, joined and counted one bucket at a time."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

BUCKETS: Final = 64
_DIGEST: Final = 16
"""Bytes of an id's hash: two of ten million ids agree with a probability of 1e-25."""
_BUFFERED: Final = 2**16


def hashes_of(ids: Iterable[str]) -> NDArray[np.bytes_]:
    digests = [hashlib.blake2b(row_id.encode(), digest_size=_DIGEST).digest() for row_id in ids]
    return np.array(digests, f"S{_DIGEST}")


def among(hashes: NDArray[np.bytes_], known: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """For each hash, whether it is among the `known` (sorted) ones."""
    if not len(known) or not len(hashes):
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return known[places] == hashes


def buckets_of(hashes: NDArray[np.bytes_]) -> NDArray[np.intp]:
    """The bucket of each hash: its first byte decides."""
    first = np.ascontiguousarray(hashes).view(np.uint8).reshape(len(hashes), _DIGEST)[:, 0]
    return (first.astype(np.intp) * BUCKETS) >> 8


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of one of `count` jobs that share a manifest: those whose ids' hashes fall to it."""

    index: int
    """1 to `count`."""
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, hashes: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """For each id's hash, whether its row is this job's; by the last bytes: the first one decides its bucket."""
        last = np.ascontiguousarray(hashes).view(">u8").reshape(len(hashes), _DIGEST // 8)[:, -1]
        return last % np.uint64(self.count) == self.index - 1


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
        self.add_hashes(hashes_of(ids))

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
        return np.sort(np.fromfile(path, f"S{_DIGEST}")) if path.exists() else np.zeros(0, f"S{_DIGEST}")

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
