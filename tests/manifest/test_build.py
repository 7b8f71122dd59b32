"""Writing manifests: ids, copies, slugs, the examples."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BuildError
from pipeline.manifest.build import build, slug
from pipeline.manifest.identity import derive_seed
from pipeline.manifest.sources import from_file
from tests.sample_manifests import build_rows


def test_a_failed_build_keeps_the_existing_manifest(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    build_rows(from_file(str(tmp_path / "p.txt")), tmp_path)
    before = (tmp_path / "m.parquet").read_bytes()
    (tmp_path / "p.csv").write_text("prompt,seed\na,1\nb,x\n")
    with pytest.raises(BuildError):
        build(from_file(str(tmp_path / "p.csv")), str(tmp_path / "m.parquet"))
    assert (tmp_path / "m.parquet").read_bytes() == before


def test_rows_keep_their_ids_when_others_are_added(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\na dog\n")
    first = {row["prompt"]: row["id"] for row in build_rows(from_file(str(tmp_path / "p.txt")), tmp_path)}
    (tmp_path / "p.txt").write_text("a bird\na dog\na cat\na cat\n")
    second = build_rows(from_file(str(tmp_path / "p.txt")), tmp_path)
    assert [row["id"] for row in second][1:] == [first["a dog"], first["a cat"], first["a cat"] + "-2"]


def test_each_copy_of_a_row_has_its_own_id_and_seed(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,prompt,seed\ncat,a cat,5\n,a dog,\n")
    rows = build_rows(from_file(str(tmp_path / "p.csv")), tmp_path, images_per_prompt=3, constants={"strength": "0.5"})
    assert [row["id"] for row in rows[:3]] == ["cat", "cat-2", "cat-3"]
    assert [row["seed"] for row in rows] == [5, 6, 7, None, None, None]
    assert len({derive_seed(row["id"], 0) for row in rows}) == 6
    assert {row["strength"] for row in rows} == {0.5}


@given(st.text())
def test_a_slug_is_short_plain_text(text: str) -> None:
    short = slug(text)
    assert len(short) <= 40
    assert short == short.strip("-")
    assert set(short) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_the_example_is_what_its_command_builds(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2] / "manifests"
    build(from_file(str(root / "demo.csv")), str(tmp_path / "demo.parquet"))
    assert pq.read_table(tmp_path / "demo.parquet").equals(pq.read_table(root / "demo.parquet"))
    with open(root / "demo.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 32


def test_the_examples_use_only_words_of_the_embedded_model() -> None:
    from pipeline.training.data.scenes import vocabulary

    root = Path(__file__).resolve().parents[2] / "manifests"
    known = set(vocabulary())
    for name in ("demo.parquet", "shapes.parquet"):
        for prompt in pq.read_table(root / name)["prompt"].to_pylist():
            assert set(prompt.replace(",", " ,").split()) <= known


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_seeds_of_64_bits_stay_what_they_are(tmp_path: Path, suffix: str) -> None:
    seeds, source = [1, 2**62, 2**63 + 5, 2**64 - 1, None], tmp_path / f"p.{suffix}"
    rows = [{"prompt": f"p{index}", "seed": seed} for index, seed in enumerate(seeds)]
    if suffix == "csv":
        source.write_text("prompt,seed\n" + "".join(f"{row['prompt']},{row['seed'] or ''}\n" for row in rows))
    elif suffix == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.table({"prompt": ["p"] * 5, "seed": pa.array(seeds, pa.uint64())}), source)
    assert [row["seed"] for row in build_rows(from_file(str(source)), tmp_path)] == seeds
