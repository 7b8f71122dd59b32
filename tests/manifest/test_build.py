"""Building manifests from what people have: files, folders of pictures, templates with lists."""

import csv
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import BuildError
from pipeline.manifest.build import build, slug
from pipeline.manifest.identity import derive_seed
from pipeline.manifest.read import read_batches, read_schema
from pipeline.manifest.rules import Rules
from pipeline.manifest.sources import from_file, from_folder
from pipeline.manifest.templates import from_template, read_list
from pipeline.manifest.validate import validate
from pipeline.manifest.values import Source

LISTS = {"size": ["small", "large"], "color": ["red", "orange"], "shape": ["circle", "star", "ring"]}


def built(source: Source, folder: Path, **options: Any) -> list[dict[str, Any]]:
    path = str(folder / "m.parquet")
    count = build(source, path, **options)
    rows = pq.read_table(path).to_pylist()
    assert len(rows) == count
    assert len({row["id"] for row in rows}) == count
    return rows


def test_a_csv_becomes_typed_columns_and_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "\ufeffprompt,num_inference_steps,guidance_scale,label,weight,postcode\n"
        '"a cat, asleep",30,7.5,12,1.5,01234\n"a ""dog""",,,7,2,99999\n',
        encoding="utf-8",
    )
    rows = built(from_file(str(tmp_path / "p.csv")), tmp_path)
    assert [row["prompt"] for row in rows] == ["a cat, asleep", 'a "dog"']
    assert [row["num_inference_steps"] for row in rows] == [30, None]
    assert [row["guidance_scale"] for row in rows] == [7.5, None]
    assert [row["label"] for row in rows] == [12, 7]
    assert [row["weight"] for row in rows] == [1.5, 2.0]
    assert [row["postcode"] for row in rows] == ["01234", "99999"], "a leading zero is no number's"
    assert rows[0]["id"].startswith("a-cat-asleep-")
    schema = read_schema(str(tmp_path / "m.parquet"))
    assert schema.field("num_inference_steps").type == pa.int32()
    assert list(validate(str(tmp_path / "m.parquet"), Rules())) == []


def test_jsonl_text_and_parquet_are_read_too(tmp_path: Path) -> None:
    objects = [{"caption": "a cat", "seed": 3, "tags": ["x", "y"]}, {"caption": "ein Kätzchen", "extra": 1.5}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in objects) + "\n\n")
    (tmp_path / "p.txt").write_text("a cat\r\n\n  a dog  \n")
    pq.write_table(pa.table({"id": ["x"], "prompt": ["a cat"], "vector": [[1.0, 2.0]]}), tmp_path / "p.parquet")
    rows = built(from_file(str(tmp_path / "p.jsonl"), prompt_column="caption"), tmp_path)
    assert [(row["prompt"], row["seed"], row["tags"], row["extra"]) for row in rows] == [
        ("a cat", 3, '["x", "y"]', None),
        ("ein Kätzchen", None, None, 1.5),
    ]
    assert [row["prompt"] for row in built(from_file(str(tmp_path / "p.txt")), tmp_path)] == ["a cat", "a dog"]
    assert built(from_file(str(tmp_path / "p.parquet")), tmp_path) == [
        {"id": "x", "prompt": "a cat", "vector": [1.0, 2.0]}
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"prompt,seed\na cat,abc\n", r'p.csv, line 2: seed is "abc"; give a whole number'),
        ("p.csv", b"prompt,guidance_scale\na,b\n", r'line 2: guidance_scale is "b"; give a number'),
        ("p.csv", b"prompt\na cat, asleep\n", "line 2: it has more fields than the first line"),
        ("p.csv", b"text\na cat\n", r'no column "prompt" \(there are text\); .* --prompt-column'),
        ("p.csv", b"prompt,prompt\na,b\n", "two columns have one name"),
        ("p.csv", b"prompt\n", "holds no row"),
        ("p.csv", b'prompt\n"a cat\n', "line 2: unexpected end of data"),
        ("p.csv", b"prompt\n\xff\xfe\n", "is not UTF-8 text"),
        ("p.csv", b"id,prompt\nx,a\nx,b\n", '1 ids stand more than once: "x"'),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "line 2: is no JSON"),
        ("p.jsonl", b"[1]\n", "line 1: is no JSON object"),
        ("p.txt", b"\n\n", "the source holds no row"),
        ("p.xlsx", b"", "cannot tell what it is"),
    ],
)
def test_a_source_that_is_wrong_says_where_and_leaves_no_manifest(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BuildError, match=message) as caught:
        build(from_file(str(tmp_path / name)), str(tmp_path / "m.parquet"))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [name]


def test_a_failed_build_keeps_the_manifest_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    built(from_file(str(tmp_path / "p.txt")), tmp_path)
    before = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "p.csv").write_text("prompt,seed\na,1\nb,x\n")
    with pytest.raises(BuildError):
        build(from_file(str(tmp_path / "p.csv")), str(tmp_path / "m.parquet"))
    assert (tmp_path / "m.parquet").read_bytes() == before


def test_rows_keep_their_ids_when_others_are_added(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    first = {row["prompt"]: row["id"] for row in built(from_file(str(tmp_path / "p.txt")), tmp_path)}
    (tmp_path / "p.txt").write_text("a bird\na dog\na cat\na cat\n")
    second = built(from_file(str(tmp_path / "p.txt")), tmp_path)
    assert [row["id"] for row in second][1:] == [first["a dog"], first["a cat"], first["a cat"] + "-2"]


def test_a_template_gives_every_combination_in_a_fixed_order(tmp_path: Path) -> None:
    rows = built(from_template("a(n) {color} {shape}, {size}", LISTS), tmp_path)
    expected = itertools.product(LISTS["color"], LISTS["shape"], LISTS["size"])
    assert [(row["color"], row["shape"], row["size"]) for row in rows] == list(expected)
    assert rows[0]["prompt"] == "a red circle, small"
    assert rows[-1]["prompt"] == "an orange ring, large"


def test_a_list_that_names_a_parameter_makes_a_grid(tmp_path: Path) -> None:
    lists = {"color": ["red"], "sampler": ["ddim", "euler"], "num_inference_steps": ["5", "20"]}
    rows = built(from_template("a {color} {{ring}}", lists), tmp_path)
    assert {row["prompt"] for row in rows} == {"a red {ring}"}
    grid = [("ddim", 5), ("ddim", 20), ("euler", 5), ("euler", 20)]
    assert [(row["sampler"], row["num_inference_steps"]) for row in rows] == grid


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99), st.data())
def test_a_sample_is_seeded_and_without_repetition(sizes: list[int], seed: int, data: st.DataObject) -> None:
    lists = {f"f{n}": [f"v{value}" for value in range(size)] for n, size in enumerate(sizes)}
    template = " ".join(f"{{{name}}}" for name in lists)
    total = len(list(from_template(template, lists).rows()))
    sample = data.draw(st.integers(1, total))
    drawn = [row["prompt"] for row in from_template(template, lists, sample=sample, seed=seed).rows()]
    assert drawn == [row["prompt"] for row in from_template(template, lists, sample=sample, seed=seed).rows()]
    assert len(set(drawn)) == sample
    assert set(drawn) <= {" ".join(values) for values in itertools.product(*lists.values())}


def test_a_sample_of_very_many_combinations_is_quick() -> None:
    lists = {f"f{n}": [str(value) for value in range(100)] for n in range(8)}
    source = from_template(" ".join(f"{{{name}}}" for name in lists), lists, sample=100)
    assert len({row["prompt"] for row in source.rows()}) == 100


@pytest.mark.parametrize(
    ("template", "lists", "message"),
    [
        ("a {color}", {}, r"{color} has no list; give --list color=ONE,TWO"),
        ("a cat", {"color": ["red"]}, r'"color" is used nowhere'),
        ("a {color}", {"color": []}, '"color" is empty'),
        ("a {color.x}", {"color": ["red"]}, "a field is a plain name"),
        ("a {color", {"color": ["red"]}, "write a brace as"),
        ("a {id}", {"id": ["red"]}, 'cannot be named "id"'),
    ],
)
def test_a_wrong_template_is_refused(template: str, lists: dict[str, list[str]], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        from_template(template, lists)


def test_images_per_prompt_gives_copies_of_their_own_id_and_seed(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,prompt,seed\ncat,a cat,5\n,a dog,\n")
    rows = built(from_file(str(tmp_path / "p.csv")), tmp_path, images_per_prompt=3, constants={"strength": "0.5"})
    assert [row["id"] for row in rows[:3]] == ["cat", "cat-2", "cat-3"]
    assert [row["seed"] for row in rows] == [5, 6, 7, None, None, None]
    assert len({derive_seed(row["id"], 0) for row in rows}) == 6
    assert {row["strength"] for row in rows} == {0.5}


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_folder_of_pictures_is_listed_recursively_and_sorted(
    request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3_bucket")
    for name in ("b.PNG", "a/1.jpg", "a/deep/2.webp", "a/notes.txt", ".hidden/3.png", "thumbnails/4.png"):
        storage.write_bytes(f"{root}/pictures/{name}", b"")
    source = from_folder(f"{root}/pictures", f"{root}/m.parquet", exclude=["thumbnails/*"])
    build(source, f"{root}/m.parquet", constants={"prompt": "sharp"})
    rows = [row for batch in read_batches(f"{root}/m.parquet") for row in batch.to_pylist()]
    assert [row["image"] for row in rows] == ["pictures/a/1.jpg", "pictures/a/deep/2.webp", "pictures/b.PNG"]
    assert {row["prompt"] for row in rows} == {"sharp"}
    roots = storage.AllowedRoots(f"{root}/m.parquet")
    assert all(storage.exists(roots.resolve(row["image"])) for row in rows)
    elsewhere = from_folder(f"{root}/pictures", f"{root}/other/m.parquet", include=["*.txt"])
    assert [row["image"] for row in elsewhere.rows()] == [f"{root}/pictures/a/notes.txt"]
    with pytest.raises(BuildError, match="no picture was found"):
        from_folder(f"{root}/nothing", f"{root}/m.parquet")


def test_a_list_is_given_in_place_or_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "colors.txt").write_text("red\n\n light blue \n")
    assert read_list(f"@{tmp_path}/colors.txt") == ["red", "light blue"]
    assert read_list("red, light blue,") == ["red", "light blue"]
    with pytest.raises(BuildError, match="cannot be read"):
        read_list("@/nowhere.txt")


@given(st.text())
def test_a_slug_is_short_plain_text(text: str) -> None:
    made = slug(text)
    assert len(made) <= 40
    assert made == made.strip("-")
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_the_committed_examples_are_what_their_commands_make(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2] / "manifests"
    build(from_file(str(root / "demo.csv")), str(tmp_path / "demo.parquet"))
    assert pq.read_table(tmp_path / "demo.parquet").equals(pq.read_table(root / "demo.parquet"))
    with open(root / "demo.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 32


def test_the_demo_speaks_the_embedded_model_s_words() -> None:
    from pipeline.training.data.scenes import vocabulary

    root = Path(__file__).resolve().parents[2] / "manifests"
    known = set(vocabulary())
    for name in ("demo.parquet", "shapes.parquet"):
        for prompt in pq.read_table(root / name)["prompt"].to_pylist():
            assert set(prompt.replace(",", " ,").split()) <= known
