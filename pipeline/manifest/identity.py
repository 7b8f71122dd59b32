"""The identity of rows: hashes of ids and of contents, derived seeds, shards."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.manifest.arrow_values import column_values

DIGEST_BYTES: Final = 16
"""Bytes per hash of an id. The probability that two of ten million ids have the same hash is 1e-25."""


def hash_ids(ids: Iterable[str]) -> NDArray[np.bytes_]:
    """Return one hash of DIGEST_BYTES per id."""
    digests = [hashlib.blake2b(row_id.encode(), digest_size=DIGEST_BYTES).digest() for row_id in ids]
    return np.array(digests, f"S{DIGEST_BYTES}")


def hash_rows(rows: Iterable[str]) -> NDArray[np.bytes_]:
    """Return one hash per row, given as a JSON object. A null column counts as an absent one."""
    objects = ({name: value for name, value in json.loads(row).items() if value is not None} for row in rows)
    return hash_ids(json.dumps(row, sort_keys=True) for row in objects)


def derive_seed(row_id: str, run_seed: int) -> int:
    """Return the seed of a row without one: a non-negative int64 that depends on its id and the run's seed only."""
    digest = hashlib.sha256(f"{run_seed}\0{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts of a manifest that separate jobs process. The hash of a row's id decides its shard."""

    index: int
    """1 to `count`."""
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def selects(self, hashes: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Return True for each hash of an id in this shard.

        The last 8 bytes decide, because the first byte already decides the bucket of the ledger."""
        last = np.ascontiguousarray(hashes).view(">u8").reshape(len(hashes), DIGEST_BYTES // 8)[:, -1]
        return last % np.uint64(self.count) == self.index - 1


def in_shard(rows: pa.RecordBatch | pa.Table, shard: Shard) -> NDArray[np.bool_]:
    """Return True for each row in the shard. A missing id counts as an empty one."""
    return shard.selects(hash_ids(row_id or "" for row_id in column_values(rows["id"])))
