"""Files that no committed row names: found by the audit, deleted by the next run."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.output.audit import check_output
from pipeline.output.ledger import delete_uncommitted, read_ledger
from pipeline.output.sink import LedgerDatasink
from pipeline.run.state import read_state
from pipeline.schema import IMAGE_TYPE
from tests.output.rows import MANIFEST, encoded_rows, orphans_of
from tests.output.test_audit import rows_with_images, write_manifest


def with_paths(table: pa.Table) -> pa.Table:
    images: list[Any] = [
        row["image"] and {**row["image"], "path": f"files/shelf/{row['id']}.png"} for row in table.to_pylist()
    ]
    return table.set_column(table.schema.get_field_index("image"), "image", pa.array(images, IMAGE_TYPE))


def write_files(output: str, *ids: str, failed: tuple[str, ...] = ()) -> None:
    sink = LedgerDatasink(output, MANIFEST, lambda amounts: None, store="files")
    sink.write([with_paths(rows_with_images(list(ids), failed))], None)


def names(urls: list[str], output: str) -> list[str]:
    return sorted(url.removeprefix(output + "/") for url in urls)


def test_images_without_a_committed_row_are_found_and_deleted(output: str) -> None:
    write_files(output, "a", "b", "c", failed=("c",))
    write_files(output, "d")
    assert orphans_of(output) == [] and check_output(output).count == 0
    storage.write_bytes(f"{output}/files/shelf/killed.png", b"x")
    [problem] = check_output(output).problems
    assert "files/shelf/killed.png: no ledger entry names it" in problem
    assert names(delete_uncommitted(output, read_ledger(output)), output) == ["files/shelf/killed.png"]
    assert check_output(output).count == 0
    assert len(storage.list_files(f"{output}/files")) == 3


def test_a_new_run_deletes_the_images_of_the_old_one(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    write_files(output, "a", "b")
    manifest = write_manifest(tmp_path / "m.parquet", "ab")
    read_state(RunConfig(task="upscale", manifest=manifest, output=output, new_run=True))
    assert storage.list_files(output) == []


def test_no_image_is_deleted_while_a_data_file_cannot_be_read(output: str) -> None:
    write_files(output, "a")
    [data] = storage.list_files(f"{output}/data")
    storage.write_bytes(data, b"PAR1")
    assert delete_uncommitted(output, read_ledger(output)) == []
    assert len(storage.list_files(f"{output}/files")) == 1


def test_an_output_with_images_in_its_data_files_has_no_image_files(output: str) -> None:
    LedgerDatasink(output, MANIFEST, lambda amounts: None).write([encoded_rows(["a"])], None)
    assert orphans_of(output) == []


def test_other_files_of_the_output_are_never_deleted(output: str) -> None:
    for name in ("report/index.html", "run.json", "lease/00000001.json", "mine.txt"):
        storage.write_bytes(f"{output}/{name}", b"x")
    write_files(output, "a")
    assert delete_uncommitted(output, read_ledger(output)) == []
