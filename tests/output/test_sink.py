"""The Datasink and the ledger, without a cluster: what is written, what is committed, what resume sees."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.manifest.identity import hash_ids
from pipeline.output import parquet
from pipeline.output.id_sets import BUCKETS, HashBuckets, isin_buckets, isin_sorted
from pipeline.output.ledger import delete_uncommitted, part_key, read_ledger, remove_failed_rows
from pipeline.output.sink import LedgerDatasink
from pipeline.schema import IMAGE_TYPE, MAX_ROW_GROUP_ROWS
from pipeline.stages.rows import ERRORS, ROW, output_schema

MANIFEST = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("shelf", pa.int32())])


def rows_of(ids: list[str], failed: tuple[str, ...] = (), size: int = 10) -> pa.Table:
    """Rows as EncodeImages gives them."""
    columns: dict[str, Any] = {field.name: pa.nulls(len(ids), field.type) for field in output_schema(MANIFEST)}
    content = bytes(size)
    pictures = [None if row_id in failed else {"bytes": content, "path": f"{row_id}.png"} for row_id in ids]
    columns |= {"id": pa.array(ids, pa.string()), "image": pa.array(pictures, IMAGE_TYPE)}
    columns[ROW] = pa.array([json.dumps({"id": row_id}) for row_id in ids])
    for name, kind in ERRORS.items():
        columns[name] = pa.array([f"{name} of {row_id}" if row_id in failed else None for row_id in ids], kind)
    return pa.table(columns)


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"{request.getfixturevalue('s3_bucket')}/out"


def datasink(output: str) -> LedgerDatasink:
    return LedgerDatasink(output, MANIFEST, lambda amounts: None)


def committed_ids(output: str) -> set[str]:
    urls = storage.list_files(f"{output}/ledger")
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(url))) for url in urls]
    return {row_id for table in tables for row_id in table["id"].to_pylist()}


def test_a_part_is_its_rows_and_the_ledger_names_its_files(output: str) -> None:
    assert datasink(output).write([rows_of(["b", "a"]), rows_of(["c", "d"], failed=("d",))], None) == (3, 1)
    key = part_key(["a", "b", "c", "d"])
    found = {url.removeprefix(output + "/") for url in storage.list_files(output)}
    assert found == {f"{folder}/{key}.parquet" for folder in ("data", "failed", "ledger")}
    committed = read_ledger(output)
    assert (committed.ok, committed.failed) == (3, 1)
    assert committed.files == {f"data/{key}.parquet", f"failed/{key}.parquet"}
    assert list(isin_buckets(hash_ids(["d", "nobody", "a"]), committed.id_hashes.read_sorted)) == [True, False, True]
    failed = pq.read_table(pa.BufferReader(storage.read_bytes(f"{output}/failed/{key}.parquet"))).to_pylist()
    assert failed == [
        {"id": "d", "error_type": "error_type of d", "error_message": "error_message of d", "row": '{"id": "d"}'}
    ]


@pytest.mark.slow
def test_a_block_of_more_than_two_gibibytes_is_committed(tmp_path: Path) -> None:
    ids, size = [f"r{index:02}" for index in range(23)], 100_000_000
    assert datasink(str(tmp_path / "out")).write([rows_of(ids, size=size)], None) == (23, 0)
    data = pads.dataset(tmp_path / "out" / "data")
    assert sorted(data.to_table(columns=["id"])["id"].to_pylist()) == ids
    files = [Path(name).stat().st_size for name in data.files]
    assert sum(files) > 2**31
    assert max(files) < 1.1 * parquet.MAX_FILE_BYTES
    assert read_ledger(str(tmp_path / "out")).ok == 23


def test_a_task_that_runs_again_writes_nothing(output: str) -> None:
    datasink(output).write([rows_of(["a", "b"])], None)
    [url] = storage.list_files(f"{output}/data")
    storage.delete(url)
    assert datasink(output).write([rows_of(["b", "a"])], None) == (2, 0)
    assert storage.list_files(f"{output}/data") == []


@pytest.mark.parametrize("dies_at", ["failed/", "data/", "ledger/"])
def test_a_part_that_dies_on_the_way_is_not_committed(
    output: str, dies_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasink(output).write([rows_of(["first"])], None)
    before = set(storage.list_files(output))
    written = storage.write_bytes

    def die(url: str, content: bytes) -> None:
        if dies_at in url:
            raise OSError("pulled")
        written(url, content)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", die)
        with pytest.raises(OSError, match="pulled"):
            datasink(output).write([rows_of(["a", "b"], failed=("b",))], None)
    committed = read_ledger(output)
    assert list(isin_buckets(hash_ids(["first", "a", "b"]), committed.id_hashes.read_sorted)) == [True, False, False]
    delete_uncommitted(output, committed)
    assert set(storage.list_files(output)) == before
    datasink(output).write([rows_of(["a", "b"], failed=("b",))], None)
    assert committed_ids(output) == {"first", "a", "b"}


def test_files_are_cut_to_size_and_row_groups_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 25_000)
    ids = [f"{index:03}" for index in range(270)]
    datasink(str(tmp_path)).write([rows_of(ids, size=100)], None)
    files = sorted((tmp_path / "data").iterdir())
    assert len(files) == 2
    groups = [
        pq.ParquetFile(file).metadata.row_group(n) for file in files for n in range(pq.ParquetFile(file).num_row_groups)
    ]
    assert max(group.num_rows for group in groups) <= MAX_ROW_GROUP_ROWS
    table = pads.dataset(tmp_path / "data").to_table()
    assert sorted(table["id"].to_pylist()) == ids
    assert {f"data/{file.name}" for file in files} == read_ledger(str(tmp_path)).files


def test_tables_without_pictures_are_cut_to_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 20_000)
    manifest = pa.schema([("id", pa.string()), ("note", pa.string())])
    schema, ids = output_schema(manifest, "classify"), [f"{index:03}" for index in range(50)]
    columns = {field.name: pa.nulls(50, field.type) for field in schema} | {"id": ids, "note": ["x" * 1000] * 50}
    columns |= {name: pa.nulls(50, kind) for name, kind in ERRORS.items()} | {ROW: ["{}"] * 50}
    columns["label_scores"] = pa.array([[0.25] * 4] * 50)
    labels = LedgerDatasink(str(tmp_path), manifest, lambda amounts: None, task="classify")
    assert labels.write([pa.table(columns)], None) == (50, 0)
    files = sorted((tmp_path / "data").iterdir())
    assert len(files) > 1
    assert sorted(pads.dataset(tmp_path / "data").to_table()["id"].to_pylist()) == ids
    stored = pq.ParquetFile(files[0]).metadata.row_group(0)
    kinds = {stored.column(n).path_in_schema: stored.column(n).compression for n in range(stored.num_columns)}
    assert kinds["label_scores.list.element"] == "ZSTD"


def test_the_picture_column_is_the_hugging_face_convention(tmp_path: Path) -> None:
    datasink(str(tmp_path)).write([rows_of(["a"])], None)
    schema = pq.read_schema(next((tmp_path / "data").iterdir()))
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["image"]["_type"] == "Image"
    assert schema.field("shelf").type == pa.int32()


def test_an_empty_output_has_no_committed_rows(output: str) -> None:
    committed = read_ledger(output)
    assert (committed.ok, committed.failed, committed.files) == (0, 0, frozenset())
    assert not isin_buckets(hash_ids(["a"]), committed.id_hashes.read_sorted).any()


def test_a_key_depends_on_the_rows_and_not_on_their_order() -> None:
    assert part_key(["a", "b"]) == part_key(["b", "a"]) != part_key(["ab"])


def test_membership_is_exact_for_many_ids() -> None:
    known = [f"row {index}" for index in range(0, 4000, 2)]
    asked = [f"row {index}" for index in range(4000)]
    found = isin_sorted(hash_ids(asked), np.sort(hash_ids(known)))
    assert list(found) == [index % 2 == 0 for index in range(4000)]


def test_buckets_hold_every_id_once_and_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.output.id_sets._BUFFERED_HASHES", 100)
    ids = [f"row {index}" for index in range(2000)]
    with HashBuckets() as buckets:
        for start in range(0, 2000, 30):
            buckets.add(ids[start : start + 30])
        kept = list(buckets)
        assert (len(kept), buckets.count) == (BUCKETS, 2000)
        assert max(len(bucket) for bucket in kept) < 100
        assert np.array_equal(np.concatenate(kept), np.sort(hash_ids(ids)))


def test_failed_rows_that_are_forgotten_leave_the_good_ones_committed(output: str) -> None:
    datasink(output).write([rows_of(["a", "b"], failed=("b",))], None)
    datasink(output).write([rows_of(["c"], failed=("c",))], None)
    assert remove_failed_rows(output) == 2
    committed = read_ledger(output)
    assert (committed.ok, committed.failed, len(delete_uncommitted(output, committed))) == (1, 0, 2)
    datasink(output).write([rows_of(["b"]), rows_of(["c"])], None)
    assert committed_ids(output) == {"a", "b", "c"}
