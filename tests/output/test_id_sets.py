"""Sets of id hashes on disk."""

import numpy as np
import pytest

from pipeline.manifest.identity import hash_ids
from pipeline.output.id_sets import BUCKETS, HashBuckets, isin_buckets, isin_sorted


def test_membership_is_exact_for_many_ids() -> None:
    known = [f"row {index}" for index in range(0, 4000, 2)]
    hashes = hash_ids(f"row {index}" for index in range(4000))
    expected = [index % 2 == 0 for index in range(4000)]
    assert list(isin_sorted(hashes, np.sort(hash_ids(known)))) == expected
    with HashBuckets() as buckets:
        assert not isin_buckets(hashes, buckets.read_sorted).any()
        buckets.add(known)
        assert list(isin_buckets(hashes, buckets.read_sorted)) == expected


def test_buckets_contain_every_hash_once_and_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.output.id_sets._BUFFERED_HASHES", 100)
    ids = [f"row {index}" for index in range(2000)]
    with HashBuckets() as buckets:
        for start in range(0, 2000, 30):
            buckets.add(ids[start : start + 30])
        arrays = list(buckets)
        assert (len(arrays), buckets.count) == (BUCKETS, 2000)
        assert max(len(array) for array in arrays) < 100
        assert np.array_equal(np.concatenate(arrays), np.sort(hash_ids(ids)))
