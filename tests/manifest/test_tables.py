"""Tables as other tools write them: hive folders, helper files, types that differ from part to part, features."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ManifestError
from pipeline.manifest.files import manifest_files, partition_types
from pipeline.manifest.read import count_rows, fingerprint, manifest_slices, read_batches, read_schema, read_slice
from pipeline.output.id_sets import read_manifest_ids
from tests.sample_manifests import messages


def write(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def read(path: Path) -> pa.Table:
    schema = read_schema(str(path))
    table = pa.Table.from_batches(list(read_batches(str(path))), schema)
    slices = [batch for part in manifest_slices(str(path)) for batch in read_slice(part, schema)]
    assert pa.Table.from_batches(slices, schema).equals(table), "a run reads the same rows as the validation"
    return table


def row(row_id: str) -> dict[str, Any]:
    return {"id": [row_id], "prompt": ["a cat"]}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "007", "-2"], pa.int32()),
        (["1", "x"], pa.string()),
        (["3000000000"], pa.string()),
        (["1.5"], pa.string()),
        (["2025-11-25"], pa.string()),
        (["true"], pa.string()),
        (["__HIVE_DEFAULT_PARTITION__", "2"], pa.int32()),
        (["a%20b", "%C3%A9"], pa.string()),
        (["x=y"], pa.string()),
    ],
)
def test_folders_give_their_column_as_in_pyarrow(tmp_path: Path, values: list[str], kind: pa.DataType) -> None:
    for number, value in enumerate(values):
        write(tmp_path / "m" / f"split={value}" / "part-0.parquet", row(str(number)))
    table, expected = read(tmp_path / "m"), pds.dataset(tmp_path / "m", partitioning="hive").to_table()
    assert table["split"].type == kind == expected["split"].type
    assert table.sort_by("id")["split"].to_pylist() == expected.sort_by("id")["split"].to_pylist()


def test_a_parameter_that_a_folder_gives_has_the_type_of_the_parameter(tmp_path: Path) -> None:
    write(tmp_path / "m" / "sampler=ddim" / "guidance_scale=7.5" / "seed=3000000000" / "p.parquet", row("a"))
    write(tmp_path / "m" / "sampler=euler" / "guidance_scale=1" / "seed=1" / "p.parquet", row("b"))
    assert messages(str(tmp_path / "m")) == []
    columns = read(tmp_path / "m").select(["sampler", "guidance_scale", "seed"]).to_pydict()
    assert columns == {"sampler": ["ddim", "euler"], "guidance_scale": [7.5, 1.0], "seed": [3_000_000_000, 1]}


def test_ids_from_folders_keep_their_text(tmp_path: Path) -> None:
    write(tmp_path / "m" / "id=007" / "p.parquet", {"prompt": ["a cat"]})
    assert read(tmp_path / "m")["id"].to_pylist() == ["007"]


def test_the_values_of_folders_are_in_the_fingerprint(tmp_path: Path) -> None:
    for sampler in ("ddim", "euler"):
        write(tmp_path / sampler / f"sampler={sampler}" / "p.parquet", row("a"))
    assert fingerprint(str(tmp_path / "ddim")) != fingerprint(str(tmp_path / "euler"))


@pytest.mark.parametrize(
    ("folder", "columns", "message"),
    [
        ("split=a", {**row("a"), "split": ["a"]}, 'the column "split" is in the file, and folders give it too'),
        ("split=a/split=b", row("a"), 'its folders give "split" twice'),
        ("width=wide", row("a"), "the folder width=wide: width must be int32"),
    ],
)
def test_folders_that_conflict_are_refused_by_name(tmp_path: Path, folder: str, columns: Any, message: str) -> None:
    write(tmp_path / "m" / folder / "p.parquet", columns)
    with pytest.raises(ManifestError, match=message):
        read_schema(str(tmp_path / "m"))


def test_the_path_of_the_manifest_itself_gives_no_column(tmp_path: Path) -> None:
    write(tmp_path / "split=a" / "m" / "p.parquet", row("a"))
    for path in (tmp_path / "split=a" / "m", tmp_path / "split=a" / "m" / "p.parquet"):
        assert read_schema(str(path)).names == ["id", "prompt"]


def test_hidden_and_helper_files_are_skipped_as_in_pyarrow(tmp_path: Path) -> None:
    write(tmp_path / "m" / "part-0.parquet", row("a"))
    write(tmp_path / "m" / "_temporary" / "0" / "part-1.parquet", row("b"))
    write(tmp_path / "m" / ".hidden" / "part-2.parquet", row("c"))
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-0.parquet.crc", "_metadata", "_common_metadata", ".x.parquet"):
        (tmp_path / "m" / name).write_bytes(b"")
    assert read(tmp_path / "m")["id"].to_pylist() == pds.dataset(tmp_path / "m").to_table()["id"].to_pylist() == ["a"]


def test_a_folder_of_which_the_name_starts_with_an_underscore_may_be_a_column(tmp_path: Path) -> None:
    write(tmp_path / "m" / "_day=1" / "p.parquet", row("a"))
    assert read(tmp_path / "m")["_day"].to_pylist() == [1]


def test_an_empty_part_is_named(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.parquet", row("a"))
    (tmp_path / "m" / "b.parquet").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"b\.parquet: the file is empty \(0 bytes\)"):
        count_rows(str(tmp_path / "m"))


def test_a_part_without_ids_is_named(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.parquet", row("a"))
    write(tmp_path / "m" / "b.parquet", {"prompt": ["a dog"]})
    for use in (lambda path: messages(path), read_manifest_ids, read_schema):
        with pytest.raises(ManifestError, match=r'b\.parquet: there is no column "id"'):
            use(str(tmp_path / "m"))
    with pytest.raises(ManifestError, match='there is no column "id"'):
        read_manifest_ids(str(tmp_path / "m" / "b.parquet"))


@pytest.mark.parametrize(
    ("first", "second", "unified"),
    [
        (pa.array([1], pa.int32()), pa.array([2], pa.int64()), pa.int64()),
        (pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
        (pa.array(["a"]), pa.array(["b"], pa.string_view()), pa.large_string()),
        (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), pa.string()),
        (pa.nulls(1), pa.array(["b"]), pa.string()),
        (pa.array([b"a"]), pa.array([b"b"], pa.large_binary()), pa.large_binary()),
        (pa.array([1.5], pa.float32()), pa.array([2.5]), pa.float64()),
        (pa.array([[1]], pa.list_(pa.int32())), pa.array([[2]], pa.list_(pa.int64())), pa.list_(pa.int64())),
    ],
)
def test_types_that_differ_from_part_to_part_are_unified(
    tmp_path: Path, first: pa.Array, second: pa.Array, unified: pa.DataType
) -> None:
    write(tmp_path / "m" / "a.parquet", {**row("a"), "x": first})
    write(tmp_path / "m" / "b.parquet", {**row("b"), "x": second})
    write(tmp_path / "m" / "c.parquet", row("c"))
    table = read(tmp_path / "m")
    assert table["x"].type == unified
    assert table["x"].to_pylist() == [*first.to_pylist(), *second.to_pylist(), None]
    assert messages(str(tmp_path / "m")) == []


def test_types_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "m" / "a.parquet", {**row("a"), "x": [1]})
    write(tmp_path / "m" / "b.parquet", {**row("b"), "x": ["1"]})
    with pytest.raises(ManifestError, match='its files differ in the column "x": int64 and string'):
        read_schema(str(tmp_path / "m"))


@pytest.mark.parametrize("kind", ["int8", "int64", "uint64", "dictionary"])
def test_integer_ids_are_text(tmp_path: Path, kind: str) -> None:
    ids = pa.array([1, 20])
    ids = ids.dictionary_encode() if kind == "dictionary" else ids.cast(kind)
    write(tmp_path / "m" / "a.parquet", {"id": ids, "prompt": ["a cat", "a dog"]})
    write(tmp_path / "m" / "b.parquet", row("x"))
    assert messages(str(tmp_path / "m")) == []
    assert read(tmp_path / "m")["id"].to_pylist() == ["1", "20", "x"]
    assert read_manifest_ids(str(tmp_path / "m")).count == 3


def test_ids_of_another_type_are_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "m.parquet", {"id": [1.0], "prompt": ["a cat"]})
    assert messages(str(tmp_path / "m.parquet")) == [
        'the column "id" is double; it must be string, or integers, which are taken as text; cast it'
    ]


def test_the_features_of_hugging_face_are_the_union_over_the_files(tmp_path: Path) -> None:
    def metadata(features: dict[str, Any]) -> dict[str, str]:
        return {"huggingface": json.dumps({"info": {"features": features}}), "pandas": "{}", "source": "x"}

    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    write(tmp_path / "m" / "a.parquet", {**row("a"), "label": [0]}, metadata({"label": label}))
    write(tmp_path / "m" / "b.parquet", {**row("b"), "depth": [b""]}, metadata({"depth": {"_type": "Image"}}))
    actual = read_schema(str(tmp_path / "m")).metadata
    assert json.loads(actual[b"huggingface"])["info"]["features"] == {"label": label, "depth": {"_type": "Image"}}
    assert b"pandas" not in actual and actual[b"source"] == b"x"
    write(tmp_path / "m" / "c.parquet", {**row("c"), "label": [0]}, metadata({"label": {**label, "names": ["dog"]}}))
    with pytest.raises(ManifestError, match='Hugging Face feature of the column "label"'):
        read_schema(str(tmp_path / "m"))


def test_a_limit_cuts_the_last_slice(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "m" / f"{number}.parquet", {"id": [f"{number}a", f"{number}b"]})
    schema, slices = read_schema(str(tmp_path / "m")), manifest_slices(str(tmp_path / "m"), 3)
    assert [id_.as_py() for part in slices for batch in read_slice(part, schema) for id_ in batch["id"]] == [
        "0a",
        "0b",
        "1a",
    ]
    assert partition_types(manifest_files(str(tmp_path / "m"))) == {}
