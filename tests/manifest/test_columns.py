"""The rules for columns: types and reserved names."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.columns import schema_problems
from pipeline.manifest.rules import Rules
from tests.sample_manifests import TYPES, messages, write_manifest


def test_a_wrong_type_names_the_column_and_both_types(tmp_path: Path) -> None:
    types = TYPES.set(4, pa.field("num_inference_steps", pa.string())).append(pa.field("sha256", pa.string()))
    assert messages(write_manifest(tmp_path / "m.parquet", [], types)) == [
        'the column "num_inference_steps" is string; it must be int32',
        'the column "sha256" has the name of a column that the output writes; rename it',
    ]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("seed", pa.int32()),
        ("seed", pa.uint8()),
        ("guidance_scale", pa.float32()),
        ("guidance_scale", pa.int64()),
        ("prompt", pa.large_string()),
        ("sampler", pa.dictionary(pa.int8(), pa.string())),
        ("negative_prompt", pa.null()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image", pa.large_binary()),
        ("color", pa.list_(pa.string())),
    ],
)
def test_types_that_pandas_and_others_write_are_accepted(tmp_path: Path, column: str, kind: pa.DataType) -> None:
    columns = {"id": pa.array(["a", "b"]), "prompt": pa.array(["a cat", "a dog"])}
    columns[column] = pa.array(["ddim", "euler"]).cast(kind) if column == "sampler" else pa.nulls(2, kind)
    if column == "prompt":
        columns[column] = pa.array(["a cat", "a dog"], kind)
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    assert messages(str(tmp_path / "m.parquet")) == []


def test_a_reserved_column_name_is_refused_and_similar_names_are_not() -> None:
    schema = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("__pixels", pa.binary())])
    [problem] = schema_problems(schema, Rules())
    assert problem.column == "__pixels" and "rename it" in str(problem)
    of_pandas = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("__index_level_0__", pa.int64())])
    assert not schema_problems(of_pandas, Rules())
