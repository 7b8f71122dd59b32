"""The sink without a cluster: what it writes, and what is committed."""

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.manifest.identity import hash_ids
from pipeline.output import parquet
from pipeline.output.id_sets import isin_buckets
from pipeline.output.ledger import delete_uncommitted, part_key, read_entries, read_ledger
from tests.output.rows import datasink, encoded_rows


def is_committed(output: str, *ids: str) -> list[bool]:
    return list(isin_buckets(hash_ids(ids), read_ledger(output).id_hashes.read_sorted))


def test_a_part_has_a_data_file_a_failed_file_and_a_ledger_entry(output: str) -> None:
    assert datasink(output).write([encoded_rows(["b", "a"]), encoded_rows(["c", "d"], failed=("d",))], None) == (3, 1)
    key = part_key(["a", "b", "c", "d"])
    files = {url.removeprefix(output + "/") for url in storage.list_files(output)}
    assert files == {f"{folder}/{key}.parquet" for folder in ("data", "failed", "ledger")}
    ledger = read_ledger(output)
    assert (ledger.ok, ledger.failed) == (3, 1)
    assert ledger.files == {f"data/{key}.parquet", f"failed/{key}.parquet"}
    assert is_committed(output, "d", "nobody", "a") == [True, False, True]
    failed = pq.read_table(pa.BufferReader(storage.read_bytes(f"{output}/failed/{key}.parquet"))).to_pylist()
    assert failed == [
        {"id": "d", "error_type": "error_type of d", "error_message": "error_message of d", "row": '{"id": "d"}'}
    ]


@pytest.mark.slow
def test_a_block_of_more_than_two_gibibytes_is_committed(tmp_path: Path) -> None:
    ids, size = [f"r{index:02}" for index in range(23)], 100_000_000
    assert datasink(str(tmp_path / "out")).write([encoded_rows(ids, size=size)], None) == (23, 0)
    data = pads.dataset(tmp_path / "out" / "data")
    assert sorted(data.to_table(columns=["id"])["id"].to_pylist()) == ids
    sizes = [Path(name).stat().st_size for name in data.files]
    assert sum(sizes) > 2**31
    assert max(sizes) < 1.1 * parquet.MAX_FILE_BYTES
    assert read_ledger(str(tmp_path / "out")).ok == 23


def test_a_retried_task_writes_nothing(output: str) -> None:
    datasink(output).write([encoded_rows(["a", "b"])], None)
    [url] = storage.list_files(f"{output}/data")
    storage.delete(url)
    assert datasink(output).write([encoded_rows(["b", "a"])], None) == (2, 0)
    assert storage.list_files(f"{output}/data") == []


@pytest.mark.parametrize("dies_at", ["failed/", "data/", "ledger/"])
def test_a_part_whose_write_fails_midway_is_not_committed(
    output: str, dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasink(output).write([encoded_rows(["first"])], None)
    before = set(storage.list_files(output))
    write_bytes = storage.write_bytes

    def write_or_die(url: str, content: bytes, *, fence: str | None) -> None:
        if dies_at in url:
            raise OSError("disconnected")
        write_bytes(url, content, fence=fence)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", write_or_die)
        with pytest.raises(OSError, match="disconnected"):
            datasink(output).write([encoded_rows(["a", "b"], failed=("b",))], None)
    assert is_committed(output, "first", "a", "b") == [True, False, False]
    delete_uncommitted(output, read_ledger(output))
    assert set(storage.list_files(output)) == before
    datasink(output).write([encoded_rows(["a", "b"], failed=("b",))], None)
    assert {row_id for entry in read_entries(output) for row_id in entry["id"].to_pylist()} == {"first", "a", "b"}
