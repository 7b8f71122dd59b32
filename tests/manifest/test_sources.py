"""Sources of manifests: CSV, JSONL, text and Parquet files, folders of images."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import BuildError
from pipeline.manifest.build import build
from pipeline.manifest.image_folder import from_folder
from pipeline.manifest.read import read_batches, read_schema
from pipeline.manifest.rules import Rules
from pipeline.manifest.sources import from_file
from pipeline.manifest.validate import validate
from tests.sample_manifests import build_rows


def test_a_csv_file_becomes_typed_columns_and_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "\ufeffprompt,num_inference_steps,guidance_scale,label,weight,postcode\n"
        '"a cat, asleep",30,7.5,12,1.5,01234\n"a ""dog""",,,7,2,99999\n',
        encoding="utf-8",
    )
    rows = build_rows(from_file(str(tmp_path / "p.csv")), tmp_path)
    assert [row["prompt"] for row in rows] == ["a cat, asleep", 'a "dog"']
    assert [row["num_inference_steps"] for row in rows] == [30, None]
    assert [row["guidance_scale"] for row in rows] == [7.5, None]
    assert [row["label"] for row in rows] == [12, 7]
    assert [row["weight"] for row in rows] == [1.5, 2.0]
    assert [row["postcode"] for row in rows] == ["01234", "99999"], "text with a leading zero is not a number"
    assert rows[0]["id"].startswith("a-cat-asleep-")
    schema = read_schema(str(tmp_path / "m.parquet"))
    assert schema.field("num_inference_steps").type == pa.int32()
    assert list(validate(str(tmp_path / "m.parquet"), Rules())) == []


def test_jsonl_text_and_parquet_files_are_read(tmp_path: Path) -> None:
    objects = [{"caption": "a cat", "seed": 3, "tags": ["x", "y"]}, {"caption": "ein Kätzchen", "extra": 1.5}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in objects) + "\n\n")
    (tmp_path / "p.txt").write_text("a cat\r\n\n  a dog  \n")
    pq.write_table(pa.table({"id": ["x"], "prompt": ["a cat"], "vector": [[1.0, 2.0]]}), tmp_path / "p.parquet")
    rows = build_rows(from_file(str(tmp_path / "p.jsonl"), prompt_column="caption"), tmp_path)
    assert [(row["prompt"], row["seed"], row["tags"], row["extra"]) for row in rows] == [
        ("a cat", 3, '["x", "y"]', None),
        ("ein Kätzchen", None, None, 1.5),
    ]
    assert [row["prompt"] for row in build_rows(from_file(str(tmp_path / "p.txt")), tmp_path)] == ["a cat", "a dog"]
    assert build_rows(from_file(str(tmp_path / "p.parquet")), tmp_path) == [
        {"id": "x", "prompt": "a cat", "vector": [1.0, 2.0]}
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"prompt,seed\na cat,abc\n", r'p.csv, line 2: seed is "abc"; give a whole number'),
        ("p.csv", b"prompt,guidance_scale\na,b\n", r'line 2: guidance_scale is "b"; give a number'),
        ("p.csv", b"prompt\na cat, asleep\n", "line 2: it has more fields than the first line"),
        ("p.csv", b"text\na cat\n", r'no column "prompt" \(its columns are text\); .* --prompt-column'),
        ("p.csv", b"prompt,prompt\na,b\n", "two columns have the same name"),
        ("p.csv", b"prompt\n", "the file contains no row"),
        ("p.csv", b'prompt\n"a cat\n', "line 2: unexpected end of data"),
        ("p.csv", b"prompt\n\xff\xfe\n", "not UTF-8 text"),
        ("p.csv", b"id,prompt\nx,a\nx,b\n", r'ids that are not unique: 1 \("x"\)'),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "line 2: not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "x\\ud800"}\n', r"line 2: prompt has \\ud800, half of a character"),
        ("p.jsonl", b'{"prompt": "a", "\\udfff": 1}\n', "line 1: the name of a column has"),
        ("p.csv", b"prompt,seed\na,1.5\n", r'line 2: seed is "1.5"; give a whole number'),
        ("p.csv", b"prompt,seed\na,18446744073709551616\n", "line 2: seed is .* at most 18446744073709551615"),
        ("p.csv", b"prompt,width\na,3000000000\n", "line 2: width is .* at most 2147483647"),
        ("p.csv", b"prompt,seed\na,nan\n", r'line 2: seed is "nan"; give a whole number'),
        ("p.jsonl", b"[1]\n", "line 1: not a JSON object"),
        ("p.txt", b"\n\n", "the source contains no row"),
        ("p.xlsx", b"", "the suffix is unknown"),
    ],
)
def test_an_invalid_source_gives_its_line_and_leaves_no_manifest(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BuildError, match=message) as caught:
        build(from_file(str(tmp_path / name)), str(tmp_path / "m.parquet"))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("location", ["local", "s3"])
def test_a_folder_of_images_is_listed_recursively_and_sorted(
    request: pytest.FixtureRequest, tmp_path: Path, location: str
) -> None:
    root = str(tmp_path) if location == "local" else request.getfixturevalue("s3_bucket")
    for name in ("b.PNG", "a/1.jpg", "a/deep/2.webp", "a/notes.txt", ".hidden/3.png", "thumbnails/4.png"):
        storage.write_bytes(f"{root}/pictures/{name}", b"x")
    source = from_folder(f"{root}/pictures", f"{root}/m.parquet", exclude=["thumbnails/*"])
    build(source, f"{root}/m.parquet", constants={"prompt": "sharp"})
    rows = [row for batch in read_batches(f"{root}/m.parquet") for row in batch.to_pylist()]
    assert [row["image"] for row in rows] == ["pictures/a/1.jpg", "pictures/a/deep/2.webp", "pictures/b.PNG"]
    assert {row["prompt"] for row in rows} == {"sharp"}
    roots = storage.AllowedRoots(f"{root}/m.parquet")
    assert all(storage.exists(roots.resolve(row["image"])) for row in rows)
    from_other_folder = from_folder(f"{root}/pictures", f"{root}/other/m.parquet", include=["*.txt"])
    assert [row["image"] for row in from_other_folder.rows()] == [f"{root}/pictures/a/notes.txt"]
    with pytest.raises(BuildError, match="the folder contains no image"):
        from_folder(f"{root}/nothing", f"{root}/m.parquet")


def test_whole_numbers_as_pandas_writes_them_are_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,seed,width,n\na,1.0,64.0,1.0\nb,,,2.0\nc,+3,1e2,\n")
    rows = build_rows(from_file(str(tmp_path / "p.csv")), tmp_path)
    assert [(row["seed"], row["width"]) for row in rows] == [(1, 64), (None, None), (3, 100)]


def test_an_empty_text_stays_a_text_except_in_csv(tmp_path: Path) -> None:
    rows = [{"prompt": "", "negative_prompt": "", "note": "", "seed": "", "n": 1, "image": "", "id": ""}, {"n": ""}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    [first, second] = build_rows(from_file(str(tmp_path / "p.jsonl")), tmp_path)
    texts = {name: first[name] for name in ("prompt", "negative_prompt", "note", "seed", "n", "image")}
    assert texts == {"prompt": "", "negative_prompt": "", "note": "", "seed": None, "n": 1, "image": None}
    assert first["id"].startswith("row-") and second["n"] is None and second["prompt"] is None
    pq.write_table(pa.table({"prompt": ["", None], "note": ["", None]}), tmp_path / "p.parquet")
    assert [row["prompt"] for row in build_rows(from_file(str(tmp_path / "p.parquet")), tmp_path)] == ["", None]
    (tmp_path / "p.csv").write_text('prompt,note\n"",""\n')
    assert build_rows(from_file(str(tmp_path / "p.csv")), tmp_path)[0]["prompt"] is None


def test_integer_ids_of_a_parquet_file_become_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "prompt": ["a", "b"]}), tmp_path / "p.parquet")
    assert [row["id"] for row in build_rows(from_file(str(tmp_path / "p.parquet")), tmp_path)] == ["1", "2"]


def test_a_hive_folder_is_a_source(tmp_path: Path) -> None:
    for name in ("ddim", "euler"):
        (tmp_path / "t.parquet" / f"sampler={name}").mkdir(parents=True)
        pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "t.parquet" / f"sampler={name}" / "0.parquet")
    assert [row["sampler"] for row in build_rows(from_file(f"{tmp_path}/t.parquet/"), tmp_path)] == ["ddim", "euler"]


def test_other_columns_and_metadata_of_a_parquet_file_stay_what_they_are(tmp_path: Path) -> None:
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["x"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), "source": "elsewhere"}
    columns = {
        "text": pa.array(["a", "b"]),
        "label": pa.array([0, None], pa.int64()),
        "far": pa.array([2**62, None], pa.timestamp("us")),
        "fine": pa.array([1, 2], pa.timestamp("ns")),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "pairs": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        "price": pa.array(["1.10", None]).cast(pa.decimal128(5, 2)),
    }
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "p.parquet")
    build(from_file(str(tmp_path / "p.parquet"), prompt_column="text"), str(tmp_path / "m.parquet"))
    built, source = pq.read_table(tmp_path / "m.parquet"), pq.read_table(tmp_path / "p.parquet")
    for name in ("label", "far", "fine", "kind", "pairs", "price"):
        assert built[name].equals(source[name]), name
    actual = json.loads(built.schema.metadata[b"huggingface"])["info"]["features"]
    assert actual == {"prompt": features["text"], "label": features["label"]}
    assert built.schema.metadata[b"source"] == b"elsewhere"
