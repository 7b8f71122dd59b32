"""The audit: it accepts what the sink writes, and nothing else."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from pipeline import storage
from pipeline.images.encode import encode_image
from pipeline.output.audit import check_output
from pipeline.output.ledger import encode_entry
from pipeline.stages.rows import row_ids
from tests.output.rows import datasink, encoded_rows


def rows_with_images(ids: list[str], failed: tuple[str, ...] = ()) -> pa.Table:
    """Return rows as EncodeImages returns them, with real images."""
    table = encoded_rows(ids, failed)
    rows: list[dict[str, Any]] = table.to_pylist()
    for index, row in enumerate(rows):
        if row["id"] not in failed:
            data = encode_image(np.full((8, 16, 3), index, np.uint8), "png")
            row["image"] = {"bytes": data, "path": "x.png"}
            row |= {"width": 16, "height": 8, "sha256": hashlib.sha256(data).hexdigest()}
    return pa.Table.from_pylist(rows, table.schema)


@pytest.fixture
def output(tmp_path: Path) -> str:
    sink = datasink(str(tmp_path / "out"))
    sink.write([rows_with_images(["a", "b", "c"], failed=("c",))], None)
    sink.write([rows_with_images(["d", "e"])], None)
    return str(tmp_path / "out")


def write_manifest(path: Path, ids: str) -> str:
    pq.write_table(pa.table({"id": list(ids), "prompt": ["x"] * len(ids)}), path)
    return str(path)


def test_an_intact_output_has_no_problems(output: str, tmp_path: Path) -> None:
    audit = check_output(output, write_manifest(tmp_path / "m.parquet", "abcde"))
    assert (audit.ok, audit.failed, audit.files, audit.problems) == (4, 1, 3, [])
    assert cli.run(["check", output]) == 0


def edit_first_row(url: str, **changes: Any) -> None:
    table = pq.read_table(url)
    rows = table.to_pylist()
    rows[0] |= changes
    pq.write_table(pa.Table.from_pylist(rows, table.schema), url)


def test_every_kind_of_damage_is_found(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = storage.list_files(f"{output}/data")
    cases: list[tuple[str, Any]] = [
        ("no ledger entry names it", lambda: storage.write_bytes(f"{output}/data/x.parquet", b"PAR1")),
        ("cannot be read", lambda: storage.write_bytes(data[0], storage.read_bytes(data[0])[:-20])),
        ("cannot be read", lambda: storage.delete(data[0])),
        ("not the one in its column sha256", lambda: edit_first_row(data[0], sha256="0" * 64)),
        ("is 16x8, not 17x8", lambda: edit_first_row(data[0], width=17)),
        ("ids of the ledger are in no file", lambda: edit_first_row(data[0], id="z")),
        (
            "more than once in the ledger",
            lambda: storage.write_bytes(
                f"{output}/ledger/x.parquet", encode_entry([{"id": "a", "status": "ok", "file": "data/x.parquet"}])
            ),
        ),
    ]
    intact = {url: storage.read_bytes(url) for url in storage.list_files(output)}
    for expected, damage in cases:
        damage()
        assert expected in "\n".join(check_output(output).problems), expected
        assert cli.run(["check", output]) == 3
        for url in storage.list_files(output):
            storage.delete(url)
        for url, content in intact.items():
            storage.write_bytes(url, content)
    assert check_output(output).count == 0


def test_a_manifest_with_other_rows_is_reported(output: str, tmp_path: Path) -> None:
    assert "1 ids of the manifest are not in the output" in str(
        check_output(output, write_manifest(tmp_path / "more.parquet", "abcdef"))
    )
    assert "1 ids of the output are not in the manifest" in str(
        check_output(output, write_manifest(tmp_path / "less.parquet", "abcd"))
    )


def test_a_missing_output_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["check", str(tmp_path / "nowhere")]) == 1
    assert "there is no such output" in capsys.readouterr().err


def test_rows_that_share_an_id_and_failed_for_it_are_sound(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    table = rows_with_images(["a", "a", "b"], failed=("a",))
    datasink(output).write([table], None)
    manifest = write_manifest(tmp_path / "m.parquet", "aab")
    for audit in (check_output(output), check_output(output, manifest)):
        assert (audit.ok, audit.failed, audit.problems) == (1, 2, [])
    assert "1 ids of the output are not in the manifest" in str(
        check_output(output, write_manifest(tmp_path / "once.parquet", "ab"))
    )


def test_an_id_that_is_good_in_one_part_and_failed_in_another_is_a_problem(tmp_path: Path) -> None:
    datasink(str(tmp_path / "out")).write([rows_with_images(["a", "b"])], None)
    datasink(str(tmp_path / "out")).write([rows_with_images(["a", "c"], failed=("a",))], None)
    assert "1 ids are more than once in the ledger" in str(check_output(str(tmp_path / "out")))


def test_rows_without_an_id_are_those_of_the_manifest(tmp_path: Path) -> None:
    manifest = pa.table({"id": ["a", None], "prompt": ["x", "y"]})
    pq.write_table(manifest, tmp_path / "m.parquet")
    names = row_ids(manifest)
    datasink(str(tmp_path / "out")).write([rows_with_images(names, failed=(names[1],))], None)
    assert check_output(str(tmp_path / "out"), str(tmp_path / "m.parquet")).problems == []


def test_an_image_over_the_limits_for_sources_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasink(str(tmp_path / "out")).write([rows_with_images(["a"])], None)
    monkeypatch.setattr("pipeline.output.audit.MAX_BYTES", 10)
    monkeypatch.setattr("pipeline.images.decode.MAX_BYTES", 10)
    assert check_output(str(tmp_path / "out")).problems == []
    monkeypatch.setattr("pipeline.output.audit.MAX_PIXELS", 10)
    assert check_output(str(tmp_path / "out")).problems == []
