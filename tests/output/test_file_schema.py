"""One schema for all data files: the features of the manifest stay, and every reader opens the folder."""

from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import RunError
from pipeline.manifest.read import read_schema
from pipeline.output.file_schema import refuse_other_columns
from pipeline.output.ledger import read_ledger
from pipeline.output.sink import LedgerDatasink
from pipeline.stages.rows import output_schema
from tests.output.rows import encoded_rows
from tests.output.test_audit import rows_with_images

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "depth": datasets.Image(),
        "tags": datasets.Sequence(datasets.Value("string")),
        "labels": datasets.Sequence(datasets.ClassLabel(names=["in", "out"])),
    }
)


@pytest.fixture
def manifest(tmp_path: Path) -> pa.Schema:
    picture = Image.new("RGB", (4, 4), "red")
    row: dict[str, Any] = {"id": "a", "image": picture, "label": 1, "depth": picture, "tags": ["x"], "labels": [0]}
    datasets.Dataset.from_dict({name: [value] for name, value in row.items()}, FEATURES).to_parquet(
        tmp_path / "m.parquet"
    )
    return read_schema(str(tmp_path / "m.parquet"))


def write(output: Path, manifest: pa.Schema, *ids: str) -> None:
    rows = rows_with_images(list(ids))
    for field in output_schema(manifest):
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(ids), field.type))
    LedgerDatasink(str(output), manifest, lambda amounts: None).write([rows], None)


def test_the_features_of_a_manifest_stay_and_its_images_are_images(tmp_path: Path, manifest: pa.Schema) -> None:
    write(tmp_path / "out", manifest, "a", "b")
    write(tmp_path / "out", manifest, "c")
    files = f"{tmp_path}/out/data/*.parquet"
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    for name in ("image", "label", "depth", "tags", "labels"):
        assert loaded.features[name] == FEATURES[name], name
    assert loaded[0]["image"].size == (16, 8)
    names = pads.dataset(tmp_path / "out" / "data").schema.names
    assert list(pd.read_parquet(tmp_path / "out" / "data").columns) == names
    assert pads.dataset(tmp_path / "out" / "data").count_rows() == 3


def test_the_metadata_of_other_tools_that_describe_a_whole_table_goes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a"], "prompt": ["x"], "shelf": [1]}).set_index("shelf")
    frame.to_parquet(tmp_path / "m.parquet")
    write(tmp_path / "out", read_schema(str(tmp_path / "m.parquet")), "a")
    assert "shelf" in pd.read_parquet(tmp_path / "out" / "data").columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], '"shelf" is missing now'),
        ([("shelf", pa.int32()), ("color", pa.string())], '"color" is new'),
        ([("shelf", pa.int64())], '"shelf" is int64, was int32'),
    ],
)
def test_a_manifest_with_other_columns_than_the_output_is_refused(
    output: str, columns: list[tuple[str, pa.DataType]], message: str
) -> None:
    first = pa.schema([("id", pa.string()), ("prompt", pa.string())])
    with_shelf = first.append(pa.field("shelf", pa.int32()))
    LedgerDatasink(output, with_shelf, lambda amounts: None).write([encoded_rows(["a"])], None)
    files = read_ledger(output).files
    refuse_other_columns(output, files, output_schema(with_shelf))
    with pytest.raises(RunError, match=f"{message}; give another OUTPUT, or --new-run to start over"):
        refuse_other_columns(output, files, output_schema(pa.schema([*first, *(pa.field(*pair) for pair in columns)])))


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp("s"), pa.timestamp("ns"), pa.large_string(), pa.list_(pa.int8()), pa.null(), pa.float16()],
)
def test_a_type_that_parquet_stores_as_another_is_the_same_type(tmp_path: Path, kind: pa.DataType) -> None:
    schema = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("x", kind)])
    write(tmp_path / "out", schema, "a")
    refuse_other_columns(str(tmp_path / "out"), read_ledger(str(tmp_path / "out")).files, output_schema(schema))
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 1
