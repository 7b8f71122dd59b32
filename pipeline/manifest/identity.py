"""A row's identity: the hash of its id, the hash of its content, its derived seed, and its shard."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass


DIGEST_BYTES: Final = 16
"""Bytes of an id's hash: two of ten million ids agree with a probability of 1e-25."""


def hash_ids(ids: Iterable[str]) -> NDArray[np.bytes_]:
    digests = [hashlib.blake2b(row_id.encode(), digest_size=DIGEST_BYTES).digest() for row_id in ids]
    return np.array(digests, f"S{DIGEST_BYTES}")


@dataclass(frozen=True, slots=True)
class Shard:
    """The rows of one of `count` jobs that share a manifest: those whose ids' hashes fall to it."""

    index: int
    """1 to `count`."""
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def selects(self, hashes: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """For each id's hash, whether its row is this job's; by the last bytes: the first one decides its bucket."""
        last = np.ascontiguousarray(hashes).view(">u8").reshape(len(hashes), DIGEST_BYTES // 8)[:, -1]
        return last % np.uint64(self.count) == self.index - 1


def hash_rows(rows: Iterable[str]) -> NDArray[np.bytes_]:
    """Hashes of rows as JSON objects; a column that is null counts as one that is not there."""
    told = ({name: value for name, value in json.loads(row).items() if value is not None} for row in rows)
    return hash_ids(json.dumps(row, sort_keys=True) for row in told)


def derive_seed(row_id: str, run_seed: int) -> int:
    """The seed of a row that names none: a non-negative int64, the same in every run with this run's seed."""
    digest = hashlib.sha256(f"{run_seed}\0{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def in_shard(rows: pa.RecordBatch | pa.Table, shard: Shard) -> NDArray[np.bool_]:
    """For each row, whether it falls to the shard; those without an id go together."""
    return shard.selects(hash_ids(row_id or "" for row_id in rows["id"].to_pylist()))


def row_to_json(row: Mapping[str, Any]) -> str:
    """The row as it came, with binary values by their size."""
    return json.dumps(_without_bytes(row), ensure_ascii=False, default=str)


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if isinstance(value, Mapping):
        return {key: _without_bytes(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_bytes(inner) for inner in value]
    return value
