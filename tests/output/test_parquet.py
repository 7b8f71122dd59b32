"""The Parquet files of an output: their size, their row groups, and their types."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.output import parquet
from pipeline.output.ledger import read_ledger
from pipeline.output.sink import LedgerDatasink
from pipeline.schema import MAX_ROW_GROUP_ROWS, ROW
from pipeline.stages.rows import ERRORS, output_schema
from tests.output.rows import datasink, encoded_rows


def test_files_and_row_groups_have_a_maximum_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 25_000)
    ids = [f"{index:03}" for index in range(270)]
    datasink(str(tmp_path)).write([encoded_rows(ids, size=100)], None)
    files = sorted((tmp_path / "data").iterdir())
    assert len(files) == 2
    for metadata in (pq.read_metadata(file) for file in files):
        rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        assert max(rows) <= MAX_ROW_GROUP_ROWS
    table = pads.dataset(tmp_path / "data").to_table()
    assert sorted(table["id"].to_pylist()) == ids
    assert {f"data/{file.name}" for file in files} == read_ledger(str(tmp_path)).files


def test_files_without_images_have_a_maximum_size_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 20_000)
    manifest = pa.schema([("id", pa.string()), ("note", pa.string())])
    schema, ids = output_schema(manifest, "classify"), [f"{index:03}" for index in range(50)]
    columns = {field.name: pa.nulls(50, field.type) for field in schema} | {"id": ids, "note": ["x" * 1000] * 50}
    columns |= {name: pa.nulls(50, kind) for name, kind in ERRORS.items()} | {ROW: ["{}"] * 50}
    columns["label_scores"] = pa.array([[0.25] * 4] * 50)
    sink = LedgerDatasink(str(tmp_path), manifest, lambda amounts: None, task="classify")
    assert sink.write([pa.table(columns)], None) == (50, 0)
    files = sorted((tmp_path / "data").iterdir())
    assert len(files) > 1
    assert sorted(pads.dataset(tmp_path / "data").to_table()["id"].to_pylist()) == ids
    group = pq.ParquetFile(files[0]).metadata.row_group(0)
    compression = {group.column(n).path_in_schema: group.column(n).compression for n in range(group.num_columns)}
    assert compression["label_scores.list.element"] == "ZSTD"


def test_the_image_column_follows_the_hugging_face_convention(tmp_path: Path) -> None:
    datasink(str(tmp_path)).write([encoded_rows(["a"])], None)
    schema = pq.read_schema(next((tmp_path / "data").iterdir()))
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["image"]["_type"] == "Image"
    assert schema.field("shelf").type == pa.int32()
