"""The identity of rows: derived seeds."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.identity import derive_seed


def test_derived_seeds_never_change() -> None:
    assert derive_seed("cat-1", 0) == 5931716645602723806
    assert derive_seed("cat-1", 1) != derive_seed("cat-1", 0)


@given(st.text(), st.integers(-(2**63), 2**63))
def test_a_seed_is_a_non_negative_int64(row_id: str, run_seed: int) -> None:
    assert 0 <= derive_seed(row_id, run_seed) < 2**63
